//! What a definition file may say, and what is said of one that is wrong.
#![allow(clippy::unwrap_used)]

use feature_store::FeatureSet;

/// Parses a text with `§` before the place that the error has to name, and checks that it names
/// file, line and column, and says all of `says`.
fn check_refusal(marked: &str, says: &[&str]) -> Result<(), String> {
    let (before, after) = marked.split_once('§').ok_or("the text marks no place")?;
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&char| char != '\n').count() + 1;
    let text = format!("{before}{after}");
    let error = match FeatureSet::parse(&text, "features.yaml") {
        Ok(_) => return Err(format!("is taken: {text}")),
        Err(error) => error.to_string(),
    };
    let place = format!("features.yaml:{line}:{column}: ");
    let missing = says.iter().find(|says| !error.contains(**says));
    match (error.starts_with(&place), missing) {
        (false, _) => Err(format!("`{error}` does not begin with `{place}`")),
        (true, Some(missing)) => Err(format!("`{error}` does not say `{missing}`")),
        (true, None) => Ok(()),
    }
}

#[track_caller]
fn assert_refused(cases: &[(&str, &[&str])]) {
    let failed: Vec<String> = cases.iter().filter_map(|(text, says)| check_refusal(text, says).err()).collect();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// A file with these windows of cards.
fn card(windows: &str) -> String {
    format!(
        "version: 1\nallowed_lateness: 1d\nviews:\n  - name: card\n    entity: card_id\n    windows:\n      - {windows}\n"
    )
}

/// A file with these windows of terminals, 3 days stale.
fn terminal(windows: &str) -> String {
    format!(
        "version: 1\nallowed_lateness: 1d\nviews:\n  - name: terminal\n    entity: terminal_id\n    staleness: 3d\n    \
         windows:\n      - {windows}\n"
    )
}

/// A file with these derived features of the amount, `A`, and the count of a day, `N`.
fn derived(definition: &str) -> String {
    let views = card("{ name: N, aggregate: count, over: [1d] }");
    let views = views.replace("views:", "request:\n  - { name: A, value: amount }\nviews:");
    format!("{views}derived:\n  - {definition}\n")
}

#[test]
fn a_file_of_the_wrong_shape_is_refused() {
    assert_refused(&[
        ("§version: 2\nallowed_lateness: 1d\n".replace("§version: ", "version: §").as_str(), &["`version: 1`"]),
        ("version: 1\nallowed_lateness: 1d\n§requests:\n  - { name: A, value: amount }\n", &["requests", "request"]),
        ("version: 1\nallowed_lateness: 1d\nrequest:\n  - { name: A, §kind: amount }\n", &["kind", "value"]),
        ("version: 1\nallowed_lateness: 1d\nrequest:\n  - { name: A, value: §amout }\n", &["amout", "amount", "night"]),
        ("version: §1\nallowed_lateness: 1d\n", &["no feature is declared"]),
        ("version: 1\nallowed_lateness: §1day\n", &["`1day` is no length of time", "7d"]),
        ("version: 1\nallowed_lateness: §-1d\n", &["`-1d` is no length of time"]),
        ("version: 1\nallowed_lateness: §1.5d\n", &["`1.5d` is no length of time"]),
        ("version: 1\nallowed_lateness: §99999999d\n", &["`99999999d` is no length of time"]),
        ("version: 1\nallowed_lateness: §99999999999999999999d\n", &["is no length of time"]),
        ("version: 1\nallowed_lateness: §7\n", &["is no length of time"]),
    ]);
    for text in
        ["", "version: 1\n", "[]", "\t", "version: 1\nallowed_lateness: [", "a: &a [*a]", "version: 1\nversion: 1\n"]
    {
        let error = FeatureSet::parse(text, "features.yaml").expect_err(text).to_string();
        assert!(error.starts_with("features.yaml:"), "{error}");
    }
}

#[test]
fn a_view_that_cannot_be_kept_is_refused() {
    let count = "{ name: N, aggregate: count, over: [1d] }";
    let two = format!("{}  - name: §other\n    entity: card_id\n    windows: []\n", card(count));
    let same_name =
        format!("{}  - name: §card\n    entity: terminal_id\n    staleness: 3d\n    windows: []\n", card(count));
    let stale_card = card(count).replace("name: card\n", "name: §card\n    staleness: 3d\n");
    let no_staleness = terminal(count).replace("name: terminal", "name: §terminal").replace("    staleness: 3d\n", "");
    let merchant = card(count).replace("card_id", "§merchant_id");
    assert_refused(&[
        (&two, &["card_id", "already"]),
        (&same_name, &["this name", "already"]),
        (&stale_card, &["leave `staleness` out"]),
        (&no_staleness, &["terminal_id", "`staleness: 3d`"]),
        (&merchant, &["merchant_id", "card_id", "terminal_id"]),
    ]);
}

#[test]
fn a_window_that_says_nothing_clear_is_refused() {
    let ranges = (1..=17).map(|days| format!("{days}d")).collect::<Vec<_>>().join(", ");
    let many = format!(
        "{{ name: \"N{{days}}\", aggregate: count, over: [{ranges}] }}\n      \
         - {{ name: §\"O{{days}}\", aggregate: count, over: [{ranges}], include_current: false }}"
    );
    assert_refused(&[
        (&card("{ name: N, aggregate: count, over: [1d], §filter: x }"), &["filter", "include_current"]),
        (&card("{ name: N, aggregate: §median, over: [1d] }"), &["median", "fraud_rate"]),
        (&card("{ name: N, aggregate: count, over: [1d, §1w] }"), &["`1w` is no length of time"]),
        (&card("{ name: §N, aggregate: count, over: [] }"), &["at least one window", "over: [1d, 7d]"]),
        (&card("{ name: §N, aggregate: count, over: [0s] }"), &["longer than 0"]),
        (&card("{ name: §N, aggregate: count, over: [1d, 7d] }"), &["`{days}`", "`{hours}`"]),
        (&card("{ name: §\"N{days}\", aggregate: count, over: [1d, 36h] }"), &["36h", "no whole number", "`{days}`"]),
        (&card("{ name: §\"N{hours}\", aggregate: count, over: [90m] }"), &["90m", "no whole number", "`{hours}`"]),
        (&card("{ name: §\"N{days}\", aggregate: count, over: [86400500ms] }"), &["86400500ms", "no whole number"]),
        (&card("{ name: §\"N{weeks}\", aggregate: count, over: [7d] }"), &["`N{weeks}` is no name"]),
        (&card("{ name: §\"N{days}\", aggregate: count, over: [1d, 24h] }"), &["two features `N1`"]),
        (
            &card("{ name: N, aggregate: count, over: [1d] }\n      - { name: §N, aggregate: count, over: [2d] }"),
            &["two features `N`"],
        ),
        (
            &card("{ name: §N, aggregate: count, over: [1d], offset: 1d, include_current: false }"),
            &["leave `include_current` out"],
        ),
        (
            &card("{ name: §N, aggregate: count, over: [1d], empty: 0 }"),
            &["a count over no events is 0", "leave `empty` out"],
        ),
        (&card("{ name: §N, aggregate: sum, over: [1d], empty: 0 }"), &["leave `empty` out"]),
        (&card("{ name: §N, aggregate: mean, over: [1d], empty: .nan }"), &["finite", "missing"]),
        (&card("{ name: §N, aggregate: mean, over: [1d], empty: .inf }"), &["finite"]),
        (&card("{ name: §N, aggregate: fraud_rate, over: [1d] }"), &["under the view of terminal_id"]),
        (&card("{ name: §N, aggregate: fraud_count, over: [1d] }"), &["under the view of terminal_id"]),
        (&terminal("{ name: §N, aggregate: count, over: [1d] }"), &["3d stale", "1d late", "4d"]),
        (&terminal("{ name: §N, aggregate: fraud_rate, over: [1d], offset: 95h }"), &["ends 95h ago", "4d"]),
        // An event as late as allowed may still come for the last millisecond of this one.
        (&terminal("{ name: §N, aggregate: fraud_rate, over: [1d], offset: 4d }"), &["ends 4d ago", "4d"]),
        (&card(&many), &["at most 32"]),
    ]);
    for good in ["offset: 345600001ms", "offset: 97h", "offset: 7d"] {
        let text = terminal(&format!("{{ name: N, aggregate: fraud_rate, over: [1d], {good} }}"));
        FeatureSet::parse(&text, "features.yaml").unwrap_or_else(|error| panic!("{error}"));
    }
    let most = many.replace(", 17d]", "]").replace('§', "");
    let features = FeatureSet::parse(&card(&most), "features.yaml").expect("32 are taken");
    assert_eq!(features.width(), 32);
}

#[test]
fn a_derived_feature_that_cannot_be_computed_is_refused() {
    assert_refused(&[
        (&derived("{ name: D, ratio: [A, §M] }"), &["no feature `M`", "did you mean"]),
        (
            &derived("{ name: LOG, log1p: A }\n  - { name: D, log1p: §LOK }"),
            &["no feature `LOK`", "did you mean `LOG`?"],
        ),
        (&derived("{ name: D, log1p: §LOG }\n  - { name: LOG, log1p: A }"), &["no feature `LOG` is declared above"]),
        (&derived("{ name: D, log1p: §D }"), &["no feature `D`"]),
        (&derived("{ name: §D, log1p: A, ratio: [A, N] }"), &["exactly one"]),
        (&derived("{ name: §D }"), &["exactly one", "`ratio`", "`difference`", "`log1p`"]),
        (&derived("{ name: §A, log1p: N }"), &["two features `A`"]),
        (&derived("{ name: §\"a b\", log1p: N }"), &["`a b` is no name"]),
        (&derived("{ name: §\"\", log1p: N }"), &["is no name"]),
        (&derived("{ name: D, §product: [A, N] }"), &["product", "ratio"]),
    ]);
    for (definition, reason) in [("{ name: D, ratio: [A] }", "one"), ("{ name: D, difference: [A, N, N] }", "three")] {
        let error = FeatureSet::parse(&derived(definition), "features.yaml").expect_err(reason).to_string();
        assert!(error.starts_with("features.yaml:11:"), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("features.yaml");
    let error = FeatureSet::load(&path).expect_err("there is no file").to_string();
    assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
    std::fs::write(&path, "version: 2\nallowed_lateness: 1d\n").expect("written");
    let error = FeatureSet::load(&path).expect_err("version 2").to_string();
    assert!(error.starts_with(&format!("{}:1:10: ", path.display())), "{error}");
}

const BASE: &str = r#"
version: 1
allowed_lateness: 1d
request:
  - { name: A, value: amount }
  - { name: W, value: weekend }
views:
  - name: card
    entity: card_id
    windows:
      - { name: "N{days}", aggregate: count, over: [1d, 7d] }
      - { name: M, aggregate: mean, over: [12h] }
  - name: terminal
    entity: terminal_id
    staleness: 3d
    windows:
      - { name: R, aggregate: fraud_rate, over: [7d], offset: 7d, empty: 0 }
derived:
  - { name: Q, ratio: [A, M] }
  - { name: L, log1p: A }
"#;

fn layout_hash(text: &str) -> String {
    let features = FeatureSet::parse(text, "features.yaml").unwrap_or_else(|error| panic!("{error}"));
    let (names, layout) = (features.names(), features.layout());
    assert!(names.iter().eq(layout.features().iter().map(|feature| &feature.name)), "a slot is a column");
    assert!(layout.is_consistent());
    layout.hash().to_owned()
}

#[test]
fn the_hash_changes_with_every_meaning() {
    let mut hashes = vec![("", layout_hash(BASE))];
    for (from, to) in [
        ("name: A,", "name: B,"),
        ("value: weekend", "value: night"),
        ("over: [1d, 7d]", "over: [1d, 8d]"),
        ("over: [1d, 7d]", "over: [7d, 1d]"),
        ("over: [1d, 7d]", "over: [1d, 7d, 30d]"),
        ("over: [1d, 7d] }", "over: [1d, 7d], include_current: false }"),
        ("over: [1d, 7d] }", "over: [1d, 7d], offset: 1d }"),
        ("aggregate: count", "aggregate: sum"),
        ("over: [12h]", "over: [13h]"),
        ("over: [12h] }", "over: [12h], empty: 0 }"),
        ("over: [12h] }", "over: [12h], empty: 1 }"),
        ("offset: 7d", "offset: 8d"),
        (", empty: 0", ""),
        ("fraud_rate", "fraud_count"),
        ("staleness: 3d", "staleness: 2d"),
        ("ratio: [A, M]", "ratio: [M, A]"),
        ("ratio: [A, M]", "difference: [A, M]"),
        ("ratio: [A, M]", "ratio: [A, N1]"),
        ("log1p: A", "log1p: N1"),
        (
            "  - { name: A, value: amount }\n  - { name: W, value: weekend }",
            "  - { name: W, value: weekend }\n  - { name: A, value: amount }",
        ),
        ("  - { name: W, value: weekend }\n", ""),
    ] {
        assert!(BASE.contains(from), "{from}");
        let mut text = BASE.replace(from, to);
        if from == "name: A," {
            text = text.replace("[A, M]", "[B, M]").replace("log1p: A", "log1p: B");
        }
        if to == "fraud_count" {
            text = text.replace(", empty: 0", "");
        }
        hashes.push((to, layout_hash(&text)));
    }
    for (index, (change, hash)) in hashes.iter().enumerate() {
        let same = hashes[..index].iter().find(|(_, other)| other == hash);
        assert_eq!(same, None, "{change}");
    }
}

#[test]
fn the_hash_stays_where_the_meaning_does() {
    let hash = layout_hash(BASE);
    let block = "- name: L\n    # the amount\n    log1p: A";
    for (from, to) in [
        ("version: 1", "# Features\n\nversion:   1 # the first"),
        ("- { name: L, log1p: A }", block),
        ("name: A,", "name: 'A',"),
        ("over: [1d, 7d]", "over: [24h, 168h]"),
        ("over: [12h]", "over: [720m]"),
        ("over: [12h] }", "over: [12h], include_current: true, offset: 0s }"),
        ("empty: 0", "empty: 0.0"),
        ("allowed_lateness: 1d", "allowed_lateness: 2h"),
        ("name: card", "name: cards"),
    ] {
        assert!(BASE.contains(from), "{from}");
        assert_eq!(layout_hash(&BASE.replace(from, to)), hash, "{to}");
    }
}

/// A model is promised that a column that is not nullable is never missing.
#[test]
fn a_logarithm_of_what_can_be_negative_can_be_missing() {
    let text = BASE.replace("empty: 0", "empty: -1")
        + "  - { name: D, difference: [A, N1] }\n  - { name: LD, log1p: D }\n  - { name: LR, log1p: R }\n  - { name: LN, log1p: N1 }\n";
    let features = FeatureSet::parse(&text, "features.yaml").unwrap_or_else(|error| panic!("{error}"));
    let slot = |name: &str| features.names().iter().position(|known| known == name).expect(name);
    let mut values = vec![0.0; features.width()];
    (values[slot("A")], values[slot("N1")], values[slot("R")]) = (1.0, 2.0, -1.0);
    let mut vector = Vec::new();
    features.assemble(&mut values, &mut vector);
    for (name, missing) in [("L", false), ("LN", false), ("D", false), ("LD", true), ("LR", true)] {
        assert_eq!(vector[slot(name)].is_nan(), missing, "{name}");
        assert_eq!(features.layout().features()[slot(name)].nullable, missing, "{name}");
    }
}

#[test]
fn the_bundled_features_are_the_handbooks_and_more() {
    let features = FeatureSet::bundled();
    let mut handbook = vec!["TX_DURING_WEEKEND".to_owned(), "TX_DURING_NIGHT".to_owned()];
    for name in ["CUSTOMER_ID_NB_TX", "CUSTOMER_ID_AVG_AMOUNT", "TERMINAL_ID_NB_TX", "TERMINAL_ID_RISK"] {
        handbook.extend([1, 7, 30].map(|days| format!("{name}_{days}DAY_WINDOW")));
    }
    assert_eq!(handbook.len(), 14);
    for name in handbook {
        let times = features.names().iter().filter(|known| **known == name).count();
        assert_eq!(times, 1, "{name}");
    }
    assert_eq!(features.layout().width(), features.width());
}
