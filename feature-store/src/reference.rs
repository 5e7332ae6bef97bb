//! What a definition file may say, from the types that read it: the JSON Schema for editors, and the page for people.

use std::fmt::Write;

use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::Value;

use crate::definitions::{Aggregate, Definitions, Span, Takes};
use crate::expression::{Binary, FUNCTIONS_OF_ONE, FUNCTIONS_OF_TWO, Field, IdField, Unary};

/// The JSON Schema of a definition file, by which an editor completes and checks it.
pub fn schema() -> String {
    serde_json::to_string_pretty(&schema_of::<Definitions>()).expect("a schema is JSON") + "\n"
}

/// The reference page of the definition file, in Markdown.
pub fn reference() -> String {
    let schema = schema_of::<Definitions>();
    let mut page =
        "# Feature definitions\n\n<!-- Made by `fraudline features reference` from the types that read the file. -->\n"
            .to_owned();
    let intro = format!("{INTRO}\n\n{}", text_of(&schema));
    keys(&mut page, &schema, "The file", &intro);
    let mut types = Vec::new();
    refs(&schema["properties"], &mut types);
    let mut at = 0;
    while let Some(name) = types.get(at).cloned() {
        let definition = &schema["$defs"][&name];
        let title = capitalized(&name);
        if definition.get("properties").is_some() {
            keys(&mut page, definition, &title, text_of(definition));
        } else if name == "aggregate" {
            aggregates(&mut page, definition, &title);
        } else {
            let rows: Vec<Vec<String>> =
                variants(definition).map(|(name, text)| vec![format!("`{name}`"), text.to_owned()]).collect();
            table(&mut page, &title, text_of(definition), &["value", "meaning"], &rows);
        }
        refs(&definition["properties"], &mut types);
        at += 1;
    }
    table(&mut page, "Length of time", text_of(&schema_of::<Span>()), &[], &[]);
    expressions(&mut page);
    reasons(&mut page);
    page
}

const INTRO: &str = "[`handbook.yaml`](handbook.yaml) is such a file. An editor with a YAML language server completes and checks one that \
begins with `# yaml-language-server: $schema=` and the place of [`features.schema.json`](features.schema.json), which \
`fraudline features schema` prints. `fraudline features check` says what is wrong with a file, `fraudline features show` what it comes to.";

/// The schema of a type. Line breaks of comments in the code mean nothing elsewhere.
fn schema_of<T: JsonSchema>() -> Value {
    fn unwrap_lines(value: &mut Value) {
        match value {
            Value::Object(entries) => {
                if let Some(Value::String(text)) = entries.get_mut("description") {
                    *text = text.replace('\n', " ");
                }
                entries.values_mut().for_each(unwrap_lines);
            }
            Value::Array(items) => items.iter_mut().for_each(unwrap_lines),
            _ => {}
        }
    }
    let mut schema = schema_for!(T).to_value();
    unwrap_lines(&mut schema);
    schema
}

/// Adds the types that are referred to, each once.
fn refs(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(entries) => {
            for (key, value) in entries {
                match (key.as_str(), value.as_str()) {
                    ("$ref", Some(to)) => {
                        let name = to.trim_start_matches("#/$defs/").to_owned();
                        if !found.contains(&name) {
                            found.push(name);
                        }
                    }
                    _ => refs(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| refs(item, found)),
        _ => {}
    }
}

/// A section on the keys of an object: those that must be there first.
fn keys(page: &mut String, object: &Value, title: &str, intro: &str) {
    let required: Vec<&str> = object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let all = object["properties"].as_object().into_iter().flat_map(|all| all.keys()).map(String::as_str);
    let optional = all.filter(|key| !required.contains(key));
    let rows = required.iter().copied().chain(optional).map(|key| {
        let property = &object["properties"][key];
        let default = match property.get("default") {
            _ if required.contains(&key) => "required".to_owned(),
            Some(default) => code(default),
            None => String::new(),
        };
        let examples: Vec<String> = property["examples"].as_array().into_iter().flatten().map(code).collect();
        vec![format!("`{key}`"), type_of(property), default, text_of(property).to_owned(), examples.join(", ")]
    });
    table(page, title, intro, &["key", "type", "default", "meaning", "examples"], &rows.collect::<Vec<_>>());
}

fn aggregates(page: &mut String, schema: &Value, title: &str) {
    let rows = variants(schema).map(|(name, text)| {
        let aggregate = Aggregate::deserialize(Value::from(name)).expect("a name from the type's own schema");
        let takes = match aggregate.takes() {
            _ if aggregate.needs_labels() => "labels",
            Takes::Nothing => "events",
            Takes::Numbers => "`value`: numbers; the amount if not given",
            Takes::Anything => "`value`, required: numbers or an id",
            Takes::AnythingOrNothing => "events, or `value`: numbers or an id",
            Takes::Matches => "events, by `match`",
        };
        let missing = if aggregate.is_nullable() { "can be, unless `empty` is given" } else { "never" };
        vec![format!("`{name}`"), text.to_owned(), takes.to_owned(), missing.to_owned()]
    });
    table(page, title, text_of(schema), &["aggregate", "meaning", "of", "missing"], &rows.collect::<Vec<_>>());
}

const EXPRESSIONS: &str = "An expression is computed for one event, from features by their names, fields of the event and numbers. A \
feature whose name is no plain word stands in backticks; an id is compared with a text in quotes, as in `terminal_id == \"3156\"`. A \
condition holds where it is there and not 0.\n\n\
A missing operand makes a result missing, but a comparison with a missing value is false, and what is false or missing fulfils no \
condition. What is no finite number is missing.";

fn expressions(page: &mut String) {
    let pairs = |rows: Vec<(String, String)>| rows.into_iter().map(|(name, text)| vec![name, text]).collect::<Vec<_>>();
    let named = |schema: &Value| variants(schema).map(|(name, text)| (format!("`{name}`"), text.to_owned())).collect();
    table(page, "Expressions", EXPRESSIONS, &[], &[]);
    let numbers: Vec<(String, String)> = named(&schema_of::<Field>());
    let ids: Vec<(String, String)> = named(&schema_of::<IdField>());
    let ids = ids.into_iter().map(|(name, text)| (name, format!("{text} To be compared with a text, or counted.")));
    table(page, "Fields", "", &["field", "meaning"], &pairs(numbers.into_iter().chain(ids).collect()));

    let (binary, unary) = (schema_of::<Binary>(), schema_of::<Unary>());
    let text = |schema: &Value, operator: &dyn std::fmt::Debug| {
        let name = format!("{operator:?}");
        variants(schema).find(|(known, _)| *known == name).map(|(_, text)| text.to_owned()).unwrap_or_default()
    };
    let mut operators =
        vec![(7, "`-a`".to_owned(), text(&unary, &Unary::Minus)), (3, "`not a`".to_owned(), text(&unary, &Unary::Not))];
    for operator in Binary::INFIX {
        let Some((symbol, binding)) = operator.infix() else { continue };
        operators.push((binding, format!("`a {symbol} b`"), text(&binary, &operator)));
    }
    operators.sort_by_key(|(binding, ..)| std::cmp::Reverse(*binding));
    let operators = operators.into_iter().map(|(_, symbol, text)| (symbol, text)).collect();
    let intro = "From the tightest to the loosest; brackets group. Comparisons don't chain.";
    table(page, "Operators", intro, &["operator", "meaning"], &pairs(operators));
    let of_one = FUNCTIONS_OF_ONE.iter().map(|(name, function)| (format!("`{name}(a)`"), text(&unary, function)));
    let of_two = FUNCTIONS_OF_TWO.iter().map(|(name, function)| (format!("`{name}(a, b)`"), text(&binary, function)));
    table(page, "Functions", "", &["function", "meaning"], &pairs(of_one.chain(of_two).collect()));
}

const REASONS: &str = "The `reason` of a feature is a text in which these are filled in. Of `{value}` and `{reference}` any format can be asked for. \
If the value is missing, the text says so instead, by the feature's name.";

fn reasons(page: &mut String) {
    let rows = [
        ("{value}", "What the feature is for the payment, with at most two decimals."),
        ("{reference}", "What it usually is: the reference that the model's training has left."),
        ("{value:.1}", "With so many decimals, up to 6."),
        ("{value:percent}", "A share as `12.5%`."),
        ("{value:duration}", "Seconds as `3 days`."),
        ("{value?at night|by day}", "The one text where it isn't 0, the other where it is."),
        ("{over}", "Length of the window, as `7 days`."),
        ("{back}", "How many events back, for features with `back`."),
    ];
    let rows = rows.map(|(place, meaning)| vec![format!("`{place}`"), meaning.to_owned()]);
    table(page, "Reasons", REASONS, &["in braces", "meaning"], &rows);
}

/// Names and texts of an enum's variants.
fn variants(schema: &Value) -> impl Iterator<Item = (&str, &str)> {
    let variants = schema["oneOf"].as_array().into_iter().flatten();
    variants.filter_map(|variant| Some((variant["const"].as_str()?, text_of(variant))))
}

fn text_of(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

/// An example or a default, as it is written in the file.
fn code(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    };
    format!("`{text}`")
}

fn type_of(schema: &Value) -> String {
    if let Some(only) = schema.get("const") {
        return code(only);
    }
    if let Some(title) = schema["title"].as_str() {
        return title.to_owned();
    }
    if let Some(to) = schema["$ref"].as_str() {
        return to.trim_start_matches("#/$defs/").to_owned();
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        // Optional keys may be null, too, which says nothing.
        let choices: Vec<String> = choices.iter().map(type_of).filter(|choice| choice != "null").collect();
        return choices.join(" or ");
    }
    let several = schema["type"].as_array().into_iter().flatten().filter_map(Value::as_str);
    match schema["type"].as_str().or(several.into_iter().find(|name| *name != "null")) {
        Some("array") => format!("list: {}", type_of(&schema["items"])),
        Some("string") => "text".to_owned(),
        Some("boolean") => "`true` or `false`".to_owned(),
        Some(name) => name.to_owned(),
        None => String::new(),
    }
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn table(page: &mut String, title: &str, intro: &str, head: &[&str], rows: &[Vec<String>]) {
    let _ = write!(page, "\n## {title}\n");
    if !intro.is_empty() {
        let _ = write!(page, "\n{intro}\n");
    }
    if rows.is_empty() {
        return;
    }
    let _ = write!(page, "\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('\n', " ").replace('|', "\\|")).collect();
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Page = (&'static str, &'static str, fn() -> String);

    /// The pages that are kept beside the bundled definitions.
    const FILES: [Page; 2] = [
        ("features.schema.json", include_str!("../definitions/features.schema.json"), schema),
        ("REFERENCE.md", include_str!("../definitions/REFERENCE.md"), reference),
    ];

    #[test]
    fn the_files_are_what_the_types_say() {
        for ((file, kept, generate), command) in FILES.into_iter().zip(["schema", "reference"]) {
            let path = format!("feature-store/definitions/{file}");
            assert!(kept == generate(), "{path} is old: `cargo run -- features {command} > {path}`");
        }
    }

    #[test]
    fn the_page_leaves_nothing_unsaid() {
        let page = reference();
        for line in page.lines().filter(|line| line.starts_with("| `")) {
            let meaning = line.split(" | ").nth(if line.matches(" | ").count() == 4 { 3 } else { 1 });
            assert!(meaning.is_some_and(|meaning| meaning.trim_matches([' ', '|']).len() > 3), "{line}");
        }
        for word in [
            "`allowed_lateness`",
            "`back`",
            "`same_as_previous`",
            "`others_since_match`",
            "`sqrt(a)`",
            "`a >= b`",
            "`weekday`",
        ] {
            assert!(page.contains(&format!("\n| {word} | ")), "{word}");
        }
    }
}
