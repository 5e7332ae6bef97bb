//! One suite that every online store passes, and what is particular to each.
#![allow(clippy::unwrap_used, reason = "a failed test is to panic")]

mod cql;
mod measure;
#[path = "../windows/oracle.rs"]
mod oracle;
mod outage;
mod redis_modes;
mod services;
#[path = "../windows/streamed.rs"]
mod streamed;
mod subjects;
mod suite;

/// All checks of the suite, each as a test of its own.
macro_rules! suite {
    ($($store:ident)*) => {
        $(suite! { $store:
            order_missing_and_repeated_keys
            nothing_asked
            watermarks_in_reads
            several_partitions_and_views_at_once
            states_are_bytes
            ids_are_any_text
            views_with_similar_names_stay_apart
            a_former_owner_changes_nothing
            a_write_is_repeated_with_equal_stamps
            stamps_are_compared_as_numbers
            the_highest_stamp_wins_a_race
            a_loss_is_noticed
            five_thousand_keys_at_once
            reads_never_go_back
            windows_go_on_from_what_was_stored
        })*
    };
    ($store:ident: $($check:ident)*) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    let name = concat!(stringify!($store), "::", stringify!($check));
                    if let Some(subject) = crate::subjects::$store(name).await {
                        crate::suite::$check(&*subject).await;
                    }
                }
            )*
        }
    };
}

mod stores {
    suite! { embedded redis_single redis_cluster redis_sentinel redis_secure cql cql_secure }
}
