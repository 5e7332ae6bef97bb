//! What a definition file may say, and what is said of one that is wrong.
#![allow(clippy::unwrap_used)]

use feature_store::FeatureSet;
use schemas::{Amount, EventTime, Transaction};

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
        (
            "version: 1\nallowed_lateness: 1d\nrequest:\n  - { name: A, value: §amout }\n",
            &["`amout`", "did you mean `amount`?"],
        ),
        ("version: §1\nallowed_lateness: 1d\n", &["no feature is declared", "begin with `request:"]),
        ("version: 1\nallowed_lateness: §1day\n", &["`1day` is no length of time", "7d"]),
        ("version: 1\nallowed_lateness: §-1d\n", &["`-1d` is no length of time"]),
        ("version: 1\nallowed_lateness: §1.5d\n", &["`1.5d` is no length of time"]),
        ("version: 1\nallowed_lateness: §99999999d\n", &["`99999999d` is no length of time"]),
        ("version: 1\nallowed_lateness: §99999999999999999999d\n", &["is no length of time"]),
        ("version: 1\nallowed_lateness: §7\n", &["is no length of time"]),
    ]);
}

#[test]
fn a_text_that_is_no_definition_file_is_refused() {
    let of_cards = |window: &str| card(window).replace("§", "").replace("¶", "§");
    assert_refused(&[
        ("§", &["the file ends here", "`version: 1`", "`allowed_lateness: 1d`"]),
        ("\t§", &["the file ends here"]),
        ("§[]", &["keys and values are expected", "`name: AMOUNT`"]),
        ("§version: 1\n", &["`allowed_lateness` is missing", "fraudline features reference"]),
        ("version: 1\nallowed_lateness: §[", &["one value is expected here"]),
        ("version: 1\nallowed_lateness: §~\n", &["a value is missing here"]),
        ("§a: &a [*a]", &["no key `a`", "version, allowed_lateness"]),
        ("version: 1\n§version: 1\n", &["`version` is here twice", "leave one out"]),
        ("version: §one\n", &["a whole number is expected"]),
        ("version: 1\nallowed_lateness: 1d\nviews: §3\n", &["a list is expected", "lines that begin with `-`"]),
        (&of_cards("{ name: N, ¶aggregate: count }"), &["`over` is missing", "fraudline features reference"]),
        (&of_cards("{ name: N, aggregate: count, over: ¶1d }"), &["a list is expected", "`[1d, 7d]`"]),
        (&of_cards("{ name: N, aggregate: mean, over: [1d], empty: ¶none }"), &["a number is expected"]),
        (
            &of_cards("{ name: N, aggregate: mean, over: [1d], include_current: ¶7 }"),
            &["`true` or `false` is expected"],
        ),
        (
            &of_cards("{ name: N, aggregate: mean, ¶ower: [1d] }"),
            &["no key `ower`", "did you mean `over`?", "include_current"],
        ),
        (
            &of_cards("{ name: N, aggregate: ¶means, over: [1d] }"),
            &["no `means`", "did you mean `mean`?", "fraud_rate"],
        ),
        (&of_cards("{ name: ¶[N], aggregate: mean, over: [1d] }"), &["one value is expected here"]),
    ]);
}

#[test]
fn a_view_that_cannot_be_kept_is_refused() {
    let count = "{ name: N, aggregate: count, over: [1d] }";
    let other = count.replace("N", "O");
    let two = format!("{}  - name: §other\n    entity: card_id\n    windows:\n      - {other}\n", card(count));
    let empty = format!("{}  - name: §other\n    entity: terminal_id\n    staleness: 3d\n", card(count));
    let same_name = format!(
        "{}  - name: §card\n    entity: terminal_id\n    staleness: 3d\n    windows:\n      - {other}\n",
        card(count)
    );
    let stale_card = card(count).replace("name: card\n", "name: §card\n    staleness: 3d\n");
    let no_staleness = terminal(count).replace("name: terminal", "name: §terminal").replace("    staleness: 3d\n", "");
    let merchant = card(count).replace("card_id", "§merchant_id");
    assert_refused(&[
        (&two, &["card_id", "already"]),
        (&empty, &["the view is empty", "`windows` or a `profile`"]),
        (&same_name, &["this name", "already"]),
        (&stale_card, &["leave `staleness` out"]),
        (&no_staleness, &["terminal_id", "`staleness: 3d`"]),
        (&merchant, &["merchant_id", "card_id", "terminal_id"]),
    ]);
}

#[test]
fn a_window_that_says_nothing_clear_is_refused() {
    assert_refused(&[
        (&card("{ name: N, aggregate: count, over: [1d], §filter: x }"), &["filter", "include_current"]),
        (&card("{ name: N, aggregate: §median, over: [1d] }"), &["median", "fraud_rate"]),
        (&card("{ name: N, aggregate: count, over: [1d, §1w] }"), &["`1w` is no length of time"]),
        (&card("{ name: §N, aggregate: count, over: [] }"), &["at least one window", "over: [1d, 7d]"]),
        (&card("{ name: §N, aggregate: count, over: [0s] }"), &["longer than 0", "`over: [1d]`"]),
        (&card("{ name: §N, aggregate: count, over: [1d, 7d] }"), &["`{days}`", "`{hours}`"]),
        (
            &card("{ name: §\"N{days}\", aggregate: count, over: [1d, 36h] }"),
            &["36h", "no whole number", "`{days}`", "by itself"],
        ),
        (&card("{ name: §\"N{hours}\", aggregate: count, over: [90m] }"), &["90m", "no whole number", "`{hours}`"]),
        (&card("{ name: §\"N{days}\", aggregate: count, over: [86400500ms] }"), &["86400500ms", "no whole number"]),
        (&card("{ name: §\"N{weeks}\", aggregate: count, over: [7d] }"), &["`N{weeks}` is no name"]),
        (&card("{ name: §\"N{days}\", aggregate: count, over: [1d, 24h] }"), &["two features `N1`", "rename one"]),
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
    ]);
    for good in ["offset: 345600001ms", "offset: 97h", "offset: 7d"] {
        let text = terminal(&format!("{{ name: N, aggregate: fraud_rate, over: [1d], {good} }}"));
        FeatureSet::parse(&text, "features.yaml").unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn an_aggregate_of_what_it_cannot_be_of_is_refused() {
    assert_refused(&[
        (
            &card("{ name: N, aggregate: count, value: §amount, over: [1d] }"),
            &["a count is of events", "leave `value` out"],
        ),
        (
            &card("{ name: §N, aggregate: distinct, over: [1d] }"),
            &["a distinct needs a `value`", "`value: terminal_id`"],
        ),
        (&card("{ name: N, aggregate: sum, value: §terminal_id, over: [1d] }"), &["`terminal_id` is an id, no number"]),
        (
            &card("{ name: N, aggregate: sum, value: §terminal_id + 1, over: [1d] }"),
            &["`terminal_id` is an id, no number"],
        ),
        (&card("{ name: N, aggregate: sum, value: §amuont, over: [1d] }"), &["`amuont`", "did you mean `amount`?"]),
        (&card("{ name: N, aggregate: sum, value: §amount +, over: [1d] }"), &["expected a feature", "found the end"]),
        (
            &card("{ name: N, aggregate: count, where: §'card_id == 7', over: [1d] }"),
            &["`card_id` is an id", "`card_id == \"x\"`"],
        ),
        (&card("{ name: N, aggregate: count, match: §amount > 1, over: [1d] }"), &["a count knows no runs", "`where`"]),
        (&card("{ name: §N, aggregate: run_length, over: [1d] }"), &["a run_length needs `match`"]),
        (
            &card("{ name: §N, aggregate: rank, include_current: false, over: [1d] }"),
            &["a rank is of the events before this one"],
        ),
        (&card("{ name: §N, aggregate: last, include_current: true, over: [1d] }"), &["leave `include_current` out"]),
        (
            &terminal("{ name: N, aggregate: fraud_rate, where: §amount > 1, over: [1d], offset: 7d }")
                .replace("    windows:", "    exact: 0\n    windows:"),
            &["a label knows nothing of its transaction but the time", "leave `where` out, or `exact`"],
        ),
        (
            &card("{ name: §N, aggregate: run_length, match: fraud, over: [1d] }"),
            &["labels are joined by terminal; declare this under the view of terminal_id"],
        ),
        (&terminal("{ name: N, aggregate: count, match: §fraud, over: [1d], offset: 7d }"), &["a count knows no runs"]),
        (
            &terminal("{ name: §N, aggregate: rank, over: [1d], offset: 7d }"),
            &["a rank compares with the current event", "under the view of card_id"],
        ),
        (
            &terminal("{ name: §N, aggregate: first_seen, value: card_id, over: [1d], offset: 7d }"),
            &["a first_seen compares with the current event"],
        ),
    ]);
    for good in ["first_seen, over: [1d], offset: 7d", "distinct, value: card_id, over: [1d], offset: 7d"] {
        let text = terminal(&format!("{{ name: N, aggregate: {good} }}"));
        FeatureSet::parse(&text, "features.yaml").unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn single_events_that_are_not_there_are_refused() {
    let previous = |keys: &str| card(&format!("{{ name: \"P{{back}}\", aggregate: previous, {keys}, over: [1d] }}"));
    let few = |back: u16| previous(&format!("back: §{back}")).replace("    windows:", "    exact: 4\n    windows:");
    assert_refused(&[
        (&card("{ name: §P, aggregate: previous, over: [1d] }"), &["a previous is of single events", "`back: 16`"]),
        (&card("{ name: P, aggregate: last, back: §2, over: [1d] }"), &["a last is of all events", "leave `back` out"]),
        (&previous("back: §0"), &["from 1 to 256"]),
        (&previous("back: §257"), &["from 1 to 256"]),
        (&previous("back: §some"), &["a whole number is expected"]),
        (&card("{ name: §P, aggregate: previous, back: 2, over: [1d] }"), &["different names", "`{back}`"]),
        (&card("{ name: §\"P{back}\", aggregate: last, over: [1d] }"), &["`P{back}` is no name"]),
        (&card("{ name: §\"P{back}\", aggregate: previous, back: 2, over: [1d, 2d] }"), &["`{days}` or `{hours}`"]),
        (&few(4), &["4 by `exact`, this one included", "raise `exact`"]),
        (&previous("value: §terminal_id, back: 2"), &["`terminal_id` is an id, no number"]),
        (
            &card("{ name: §P, aggregate: same_as_previous, back: 1, over: [1d] }"),
            &["a same_as_previous needs a `value`", "`value: terminal_id`"],
        ),
        (
            &terminal("{ name: §P, aggregate: same_as_previous, value: card_id, back: 1, over: [1d], offset: 7d }"),
            &["a same_as_previous compares with the current event"],
        ),
    ]);
    FeatureSet::parse(&few(3).replace('§', ""), "features.yaml").unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn features_of_single_events_say_their_place() {
    let windows = "{ name: \"A{back}\", aggregate: previous, back: 3, over: [7d] }\n      \
                   - { name: \"S{back}_{days}\", aggregate: time_since_previous, back: 3, over: [7d, 14d] }\n      \
                   - { name: \"L{back}\", aggregate: previous, where: amount > 9, back: 3, over: [7d] }\n      \
                   - { name: N, aggregate: count, over: [7d] }";
    let features = FeatureSet::parse(&card(windows), "features.yaml").unwrap_or_else(|error| panic!("{error}"));
    let names = ["A1", "A2", "A3", "S1_7", "S2_7", "S3_7", "S1_14", "S2_14", "S3_14", "L1", "L2", "L3", "N"];
    assert_eq!(features.names(), names);
    let sequences = features.layout().sequences();
    let name = |at: usize| sequences[at].name.as_str();
    assert_eq!(name(0), "last 3 by card_id, 7d, offset 0d");
    assert_eq!(sequences[0].channels, ["previous(amount)", "time_since_previous"]);
    assert_eq!(sequences[0].columns, [[0, 3], [1, 4], [2, 5]]);
    assert_eq!(
        (name(1), &sequences[1].columns),
        ("last 3 by card_id, 14d, offset 0d", &vec![vec![6], vec![7], vec![8]])
    );
    assert_eq!(name(2), "last 3 by card_id, 7d, offset 0d, where amount > 9");
    assert_eq!(features.layout().features()[1].definition, "previous(amount) by card_id, 7d, offset 0d, 2 back of 3");
}

#[test]
fn a_reason_that_can_not_be_filled_in_is_refused() {
    let of_count = |reason: &str| card(&format!("{{ name: N, aggregate: count, over: [1d], reason: §\"{reason}\" }}"));
    assert_refused(&[
        (&of_count("{amount} payments"), &["there is no `{amount}`", "{value}, {reference}, {over} and {back}"]),
        (&of_count("{value payments"), &["a `{` has no `}` behind it"]),
        (&of_count("{value:euro}"), &["no format `euro`", "`percent`"]),
        (&of_count("{back} back"), &["`{back}` is for features with `back`"]),
        (
            &derived("{ name: D, value: A / N, reason: §\"{value} in {over}\" }"),
            &["`{over}` is the length of a window"],
        ),
        (&derived("{ name: D, value: A / N, §reasons: x }"), &["no key `reasons`", "did you mean `reason`?"]),
    ]);
}

#[test]
fn reasons_are_given_by_group() {
    let windows = "{ name: \"N{days}\", aggregate: count, over: [1d, 7d], reason: \"{value} in {over}, not {reference:.1}\" }\n      \
                   - { name: \"A{back}\", aggregate: previous, back: 2, over: [7d], reason: \"{value}, {back} back\" }\n      \
                   - { name: \"S{back}\", aggregate: time_since_previous, back: 2, over: [7d] }";
    let derived = "derived:\n  - { name: D, value: N1 / N7, reason_group: share }\n  - { name: E, value: N7 / N1, reason_group: share }\n";
    let text = card(windows) + derived;
    let features = FeatureSet::parse(&text, "features.yaml").unwrap_or_else(|error| panic!("{error}"));
    let groups = features.reason_groups().iter().map(|group| (group.name.as_str(), group.columns.as_slice()));
    let groups: Vec<(&str, &[usize])> = groups.collect();
    let sequence = "last 2 by card_id, 7d, offset 0d";
    assert_eq!(groups, [("N{days}", &[0, 1][..]), (sequence, &[2, 3, 4, 5]), ("share", &[6, 7])]);
    assert_eq!(features.reason(1, 3.0, 1.0), "3 in 7 days, not 1.0");
    assert_eq!(features.reason(3, 9.5, 1.0), "9.5, 2 back");
    assert_eq!(features.reason(4, f32::NAN, 60.0), "S1 is missing, usually 60");
    assert_eq!(features.reason(6, 0.25, f32::NAN), "D is 0.25, usually missing");

    let plain = text.replace(", reason: \"{value}, {back} back\"", "").replace(", reason_group: share", "");
    let plain = FeatureSet::parse(&plain, "features.yaml").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(plain.layout(), features.layout(), "what is said of a feature is no part of it");
    assert_eq!(plain.views()[0].key(), features.views()[0].key());
}

#[test]
fn bounds_of_memory_that_say_nothing_clear_are_refused() {
    let count = "{ name: N, aggregate: count, over: [1d], offset: 7d }";
    let with = |view: String, keys: &str| view.replace("    windows:", &format!("{keys}    windows:"));
    let distinct = "{ name: §N, aggregate: distinct, value: terminal_id, over: [1d] }";
    assert_refused(&[
        (&with(card(count), "    exact: §some\n"), &["`some` is no number up to 1000000, and not `all`"]),
        (&with(card(count), "    exact: §-1\n"), &["`-1` is no number"]),
        (&with(card(count), "    tile: §0s\n"), &["longer than 0", "`tile: 1h`"]),
        (&with(card(count), "    exact: all\n    tile: §1h\n"), &["without tiles, `tile` says nothing"]),
        (&with(terminal(count), "    tile: §1h\n"), &["without tiles, `tile` says nothing"]),
        (&with(terminal(count), "    exact: §100\n"), &["`exact` is `all` or 0 here"]),
        (
            &with(card(distinct), "    exact: 0\n"),
            &["a distinct is computed over events kept one by one", "leave `exact` out"],
        ),
    ]);
}

#[test]
fn features_that_go_round_in_a_circle_are_refused() {
    let mean = "{ name: §M, aggregate: mean, over: [1d], where: amount > 2 * M }";
    let two = "{ name: §M, aggregate: mean, over: [1d], where: amount > S }\n      \
               - { name: S, aggregate: std, over: [7d], where: amount > M }";
    let view = card("{ name: N, aggregate: count, over: [1d], where: D > 2 }");
    assert_refused(&[
        (&card(mean), &["`M` is computed from itself: M <- M; take one of these out"]),
        (&card(two), &["`M` is computed from itself: M <- S <- M"]),
        (
            &format!("{}derived:\n  - {{ name: D, value: N + 1 }}\n", view.replace("name: N", "name: §N")),
            &["N <- D <- N"],
        ),
        (&derived("{ name: §D, value: D }"), &["`D` is computed from itself: D <- D"]),
    ]);
    // A run may be made of what the same events are aggregated to.
    let run = "{ name: M, aggregate: mean, over: [1d] }\n      - { name: R, aggregate: run_length, over: [1d], match: amount > 2 * M }";
    FeatureSet::parse(&card(run), "features.yaml").unwrap_or_else(|error| panic!("{error}"));
}

/// What goes into a state is known wherever it is built, a replay included.
#[test]
fn what_is_kept_elsewhere_goes_into_no_state() {
    let risk = "    windows:\n      - { name: RISK, aggregate: fraud_rate, over: [1d], offset: 7d, empty: 0 }\n";
    let terminals = format!("  - name: terminal\n    entity: terminal_id\n    staleness: 3d\n{risk}");
    let by_risk = card("{ name: §N, aggregate: count, over: [1d], where: D > 0.1 }") + &terminals;
    let of_profiles = terminal("{ name: §N, aggregate: count, over: [1d], offset: 7d, where: M > 1 }")
        + "  - name: card_profile\n    entity: card_id\n    staleness: 1h\n    profile:\n      - { name: M }\n";
    assert_refused(&[
        (
            &format!("{by_risk}derived:\n  - {{ name: D, value: RISK * 2 }}\n"),
            &["`RISK` is read from view `terminal`; combine the two in a derived feature"],
        ),
        (&of_profiles, &["`M` is read from view `card_profile`, which lags behind", "windows of its card"]),
    ]);
}

/// What events bring along from their cards, and what the states at terminals are good for, is told by what these features mean.
#[test]
fn windows_of_terminals_may_depend_on_those_of_cards() {
    let parse = |over: &str, ratio: &str| {
        let text = terminal("{ name: N, aggregate: count, over: [1d], offset: 7d, where: RATIO <= 2 }")
            + &format!(
                "  - name: card\n    entity: card_id\n    windows:\n      - {{ name: M, aggregate: mean, over: [{over}] }}\n      - {{ name: S, aggregate: sum, over: [9d] }}\n"
            )
            + &format!("derived:\n  - {{ name: RATIO, value: {ratio} }}\n");
        FeatureSet::parse(&text, "features.yaml").unwrap_or_else(|error| panic!("{error}"))
    };
    let key = |features: &FeatureSet| features.view_of(feature_store::Entity::TerminalId).unwrap().key().clone();
    let (features, again) = (parse("1d", "amount / M"), parse("1d", "amount / M"));
    let meaning = |features: &FeatureSet| features.carry().expect("the terminal's windows ask for it").meaning();
    assert_eq!((meaning(&features), key(&features)), (meaning(&again), key(&again)));
    assert!(features.describe().to_string().contains("as each event brings along: RATIO"), "{}", features.describe());
    for other in [parse("2d", "amount / M"), parse("1d", "amount - M")] {
        assert_ne!(meaning(&features), meaning(&other));
        assert_ne!(key(&features), key(&other));
        assert_ne!(features.carry().unwrap().view().key(), other.carry().unwrap().view().key());
    }
    assert!(FeatureSet::bundled().carry().is_none());
}

#[test]
fn a_derived_feature_that_cannot_be_computed_is_refused() {
    assert_refused(&[
        (&derived("{ name: D, value: §A / M }"), &["no feature or field `M`", "did you mean"]),
        (
            &derived("{ name: LOG, value: log1p(A) }\n  - { name: D, value: §log1p(LOK) }"),
            &["no feature or field `LOK`", "did you mean `LOG`?"],
        ),
        (&derived("{ §name: D }"), &["value"]),
        (&derived("{ name: §A, value: N }"), &["two features `A`"]),
        (&derived("{ name: §amount, value: N }"), &["`amount` is a field of the event"]),
        (&derived("{ name: §\"a b\", value: N }"), &["`a b` is no name"]),
        (&derived("{ name: §\"\", value: N }"), &["is no name"]),
        (&derived("{ name: D, §ratio: [A, N] }"), &["ratio", "value"]),
        (&derived("{ name: D, value: §ln(A) }"), &["no function `ln`"]),
    ]);
    // In any order, and through each other.
    let text = derived("{ name: D, value: LOG / 2 }\n  - { name: LOG, value: log1p(A) }");
    FeatureSet::parse(&text, "features.yaml").unwrap_or_else(|error| panic!("{error}"));
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
  - { name: Q, value: A / M }
  - { name: L, value: log1p(A) }
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
        ("aggregate: count", "where: amount > 2, aggregate: count"),
        ("aggregate: count", "match: amount > 2, aggregate: run_length"),
        ("aggregate: mean", "value: amount * 2, aggregate: mean"),
        ("entity: card_id\n", "entity: card_id\n    exact: 10\n"),
        ("entity: card_id\n", "entity: card_id\n    tile: 2h\n"),
        ("A / M", "M / A"),
        ("A / M", "A - M"),
        ("A / M", "A / N1"),
        ("log1p(A)", "log1p(N1)"),
        (
            "  - { name: A, value: amount }\n  - { name: W, value: weekend }",
            "  - { name: W, value: weekend }\n  - { name: A, value: amount }",
        ),
        ("  - { name: W, value: weekend }\n", ""),
    ] {
        assert!(BASE.contains(from), "{from}");
        let mut text = BASE.replace(from, to);
        if from == "name: A," {
            text = text.replace("A / M", "B / M").replace("log1p(A)", "log1p(B)");
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
    let block = "- name: L\n    # the amount\n    value: log1p(A)";
    for (from, to) in [
        ("version: 1", "# Features\n\nversion:   1 # the first"),
        ("- { name: L, value: log1p(A) }", block),
        ("A / M", "(A)/M"),
        ("aggregate: mean", "value: amount, aggregate: mean"),
        ("entity: card_id\n", "entity: card_id\n    exact: 1000\n    tile: 60m\n"),
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
        + "  - { name: D, value: A - N1 }\n  - { name: LD, value: log1p(D) }\n  - { name: LR, value: log1p(R) }\n  - { name: LN, value: log1p(N1) }\n";
    let features = FeatureSet::parse(&text, "features.yaml").unwrap_or_else(|error| panic!("{error}"));
    let slot = |name: &str| features.names().iter().position(|known| known == name).expect(name);
    let mut values = vec![0.0; features.width()];
    (values[slot("A")], values[slot("N1")], values[slot("R")]) = (1.0, 2.0, -1.0);
    let mut vector = Vec::new();
    let transaction = Transaction {
        transaction_id: "1".into(),
        event_time: EventTime::from_millis(0),
        card_id: "c".into(),
        terminal_id: "t".into(),
        amount: Amount::from_cents(100),
    };
    features.assemble(&transaction, &mut values, &mut vector);
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
