//! How brokers are reached, by the log and by sinks alike: addresses, encryption, who we are.

use super::{Mechanism, Sasl, Tls};

/// True for `host:port`, separated by commas.
pub fn are_servers(text: &str) -> bool {
    text.split(',').all(|server| {
        server.trim().rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
    })
}

/// librdkafka's settings by their names; `secret` looks the password up.
///
/// # Errors
/// As `secret`.
pub fn settings(
    servers: &str,
    tls: Option<&Tls>,
    sasl: Option<&Sasl>,
    secret: impl FnOnce(&Sasl) -> Result<String, String>,
) -> Result<Vec<(&'static str, String)>, String> {
    let protocol = match (tls, sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    let mut settings = vec![
        ("bootstrap.servers", servers.to_owned()),
        ("client.id", "tidegate".to_owned()),
        ("allow.auto.create.topics", "false".to_owned()),
        ("log.connection.close", "false".to_owned()),
        ("reconnect.backoff.max.ms", "2000".to_owned()),
        ("security.protocol", protocol.to_owned()),
    ];
    if let Some(tls) = tls {
        let ca = tls.ca.as_ref().map_or("probe".to_owned(), |path| path.display().to_string());
        settings.push(("ssl.ca.location", ca));
        if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
            settings.push(("ssl.certificate.location", certificate.display().to_string()));
            settings.push(("ssl.key.location", key.display().to_string()));
        }
    }
    if let Some(sasl) = sasl {
        settings.push(("sasl.mechanism", sasl.mechanism.name().to_owned()));
        if sasl.mechanism != Mechanism::OauthBearer {
            settings.push(("sasl.username", sasl.user.clone()));
            settings.push(("sasl.password", secret(sasl)?));
        }
    }
    Ok(settings)
}
