//! Public keys: where they may stand, what they may do, and that a path with one is not told to anybody.

use tidegate_ingest::tenants::NewPublicKey;

use super::{
    kit::{Server, start, start_with},
    trackers::ask,
};

const TP2: &str = "/com.snowplowanalytics.snowplow/tp2";
const VIEW: &str = r#"{"data":[{"e":"pv","url":"a"}]}"#;

fn public(server: &Server, new: &NewPublicKey) -> String {
    let acme = tidegate_event::TenantId::new("acme").unwrap();
    server.tenants.add_public(&acme, new).unwrap().text
}

#[tokio::test]
async fn a_public_key_in_the_path_sends_by_what_pages_may_use_and_nothing_else() {
    let server = start().await;
    let key = public(&server, &NewPublicKey::default());
    for (path, body) in [
        (TP2, VIEW),
        ("/v3/send/t", "{}"),
        ("/track", r#"{"event_type":"t"}"#),
        ("/v1/batch", r#"{"batch":[{"type":"page"}]}"#),
        ("/batch/", r#"{"batch":[{"event":"x"}]}"#),
    ] {
        let reply = ask(&server, &format!("POST /k/{key}{path}"), "", body).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        let [(.., raw)] = &server.kept()[..] else { panic!("{path}: {:?}", server.kept()) };
        assert!(!raw.contains(&key), "{raw}");
        server.log.batches.lock().unwrap().clear();
    }
    let pixel = ask(&server, &format!("GET /k/{key}/i?e=pv"), "", "").await;
    assert_eq!((pixel.status, server.kept().len()), (200, 1));
    for (path, body) in
        [("/v1/events?event_type=t", "{}"), ("/services/collector", r#"{"event":1}"#)]
    {
        let headers = "Content-Type: application/json\r\n";
        let reply = ask(&server, &format!("POST /k/{key}{path}"), headers, body).await;
        assert_eq!(reply.status, 403, "{path}: {reply:?}");
    }
    // In the head and in the body it is the same key.
    let bearer = format!("Authorization: Bearer {key}\r\n");
    assert_eq!(ask(&server, &format!("POST {TP2}"), &bearer, VIEW).await.status, 200);
    let body = format!(r#"{{"event":"x","token":"{key}"}}"#);
    assert_eq!(ask(&server, "POST /capture/", "", &body).await.status, 200);
    assert_eq!(server.kept().len(), 3);
    server.is_balanced().await;
}

#[tokio::test]
async fn what_is_no_public_key_is_refused_in_a_path_and_never_repeated() {
    let server = start().await;
    let (key, other) =
        (public(&server, &NewPublicKey::default()), public(&server, &NewPublicKey::default()));
    let secret = server.key.clone();
    let wrong = format!("{}x", &key[..key.len() - 1]);
    for shown in [secret.as_str(), &wrong, "tgp_", "x", "tgp_%00", "k"] {
        let reply = ask(&server, &format!("POST /k/{shown}{TP2}"), "", VIEW).await;
        assert_eq!((reply.status, reply.code()), (401, "key_invalid"), "{shown}: {reply:?}");
        let detail = reply.body["message"].as_str().unwrap();
        assert!(!detail.contains(shown) || shown.len() < 5, "{detail}");
    }
    let bearer = |key: &str| format!("Authorization: Bearer {key}\r\n");
    let two = ask(&server, &format!("POST /k/{key}{TP2}"), &bearer(&other), VIEW).await;
    assert_eq!((two.status, two.code()), (401, "key_conflict"));
    let same = ask(&server, &format!("POST /k/{key}{TP2}"), &bearer(&key), VIEW).await;
    assert_eq!(same.status, 200);
    // What is not found is not repeated either, with the key or in place of one.
    for path in [format!("/k/{key}"), format!("/k/{key}?a=/b"), format!("/k/{key}/k/{key}/i")] {
        let reply = ask(&server, &format!("POST {path}"), "", VIEW).await;
        assert_eq!(reply.status, 404, "{path}");
        assert!(!reply.body.to_string().contains(&key), "{reply:?}");
    }
    assert_eq!(server.kept().len(), 1);
    server.is_balanced().await;
}

#[tokio::test]
async fn a_public_key_is_for_its_types_and_for_pages_of_its_origins() {
    let server = start_with(|setup| setup.judge = super::kit::normalizer()).await;
    let new = NewPublicKey {
        origins: vec!["https://shop.example".to_owned()],
        event_types: Some(vec!["snowplow.page_view".to_owned()]),
    };
    let line = format!("POST /k/{}{TP2}", public(&server, &new));
    let from = |origin: &str| format!("Origin: {origin}\r\n");
    let reply = ask(&server, &line, &from("https://shop.example"), VIEW).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(ask(&server, &line, "", VIEW).await.status, 200, "an image has no origin");
    let both = from("https://shop.example") + &from("https://evil.example");
    for headers in [from("https://evil.example"), from("null"), from("http://shop.example"), both] {
        let reply = ask(&server, &line, &headers, VIEW).await;
        assert_eq!((reply.status, reply.code()), (403, "key_forbidden"), "{headers}");
    }
    let ping = r#"{"data":[{"e":"pp"}]}"#;
    assert_eq!(ask(&server, &line, "", ping).await.status, 403);
    assert_eq!(server.kept().len(), 2);
    server.is_balanced().await;
}
