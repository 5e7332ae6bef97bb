use scorer::log::LogError;
use scorer::log::kafka::{Mechanism, Sasl, Tls};

use super::*;

/// Options for the broker's other listener, with TLS and SASL.
fn secure(mechanism: Mechanism, password: &str, ca: &str) -> Option<KafkaOptions> {
    let brokers = service("Kafka with TLS", "FRAUDLINE_TEST_KAFKA_SECURE", "127.0.0.1:19093")?;
    let Ok(ca) = std::env::var(ca) else {
        assert!(std::env::var("FRAUDLINE_SERVICES").as_deref() != Ok("required"), "{ca} is not set");
        eprintln!("skipped: {ca} is not set; `infra/local/services env` prints it");
        return None;
    };
    let username = std::env::var("FRAUDLINE_TEST_USER").unwrap_or("fraudline".to_owned());
    Some(KafkaOptions {
        brokers,
        tls: Some(Tls { ca_certificate: Some(ca.into()), ..Tls::default() }),
        sasl: Some(Sasl { mechanism, username, password: password.to_owned(), token_file: None }),
        instance: unique("instance"),
        request_timeout: Duration::from_secs(8),
        ..KafkaOptions::default()
    })
}

fn password() -> String {
    std::env::var("FRAUDLINE_TEST_PASSWORD").unwrap_or("fraudline-secret".to_owned())
}

#[test]
fn every_mechanism_is_let_in_over_tls() {
    for mechanism in [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512] {
        let Some(options) = secure(mechanism, &password(), "FRAUDLINE_TEST_CA") else { return };
        let log = KafkaLog::connect(options).unwrap();
        let (from, out, group) = (topic(&log, "in", 1), topic(&log, "out", 1), unique("group"));
        fill(&log, &from, 1, 0..10);
        let mut consumer = log.join(&group, "0", &[&from]).unwrap();
        let mut taken = 0;
        while taken < 10 {
            let batch = records(&mut *consumer, &from, 10);
            taken += batch.len();
            commit(&mut *consumer, &from, &out, &batch).unwrap();
        }
        assert_eq!(all(&log, &out, 0), (0..10).collect::<Vec<_>>());
    }
}

#[test]
fn a_wrong_password_is_refused() {
    let Some(options) = secure(Mechanism::ScramSha256, "wrong", "FRAUDLINE_TEST_CA") else { return };
    let error = KafkaLog::connect(options).unwrap_err();
    assert!(matches!(&error, LogError::Refused(reason) if reason.contains("uthentication")), "{error}");
    assert!(!error.to_string().contains("wrong"), "{error}");
}

#[test]
fn an_untrusted_certificate_is_refused() {
    let Some(options) = secure(Mechanism::ScramSha256, &password(), "FRAUDLINE_TEST_UNTRUSTED_CA") else { return };
    let error = KafkaLog::connect(options).unwrap_err();
    assert!(matches!(&error, LogError::Refused(reason) if reason.contains("certificate")), "{error}");
}
