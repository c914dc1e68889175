//! What pages and trackers send that can name no header: Snowplow's pixel, its cookies' rules.

use tidegate_event::TenantId;
use tidegate_ingest::writer::AppendError;

use super::kit::{Reply, Server, start, start_with};

const TP2: &str = "/com.snowplowanalytics.snowplow/tp2";
const PIXEL: &str = "/i?e=pv&eid=e-1&url=http%3A%2F%2Fa%2F&dtm=1772366400000";
const VIEW: &str = r#"{"schema":"iglu:x","data":[{"e":"pv","eid":"e-2"}]}"#;

pub async fn ask(server: &Server, line: &str, headers: &str, body: &str) -> Reply {
    let head = format!("{line} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n");
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    server.raw(request.as_bytes()).await
}

async fn open() -> Server {
    start_with(|setup| {
        setup.config.open.insert("snowplow".to_owned(), TenantId::new("acme").unwrap());
        setup.judge = super::kit::normalizer();
        setup.config.limits.body_bytes = tidegate_ingest::config::Size(1_000);
    })
    .await
}

#[tokio::test]
async fn a_pixel_is_answered_with_one_once_its_event_is_durable() {
    let server = open().await;
    let reply = ask(&server, &format!("GET {PIXEL}"), "", "").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("image/gif")));
    assert_eq!(reply.header("content-length"), Some("42"));
    assert_eq!(reply.header("cache-control"), Some("no-cache, no-store, must-revalidate"));
    let raw = r#"{"e":"pv","eid":"e-1","url":"http://a/","dtm":"1772366400000"}"#;
    let kept = ("snowplow.page_view".to_owned(), Some("e-1".to_owned()), raw.to_owned());
    assert_eq!(server.kept(), [kept]);
    *server.log.refuse.lock().unwrap() = Some(AppendError::Storage);
    let reply = ask(&server, &format!("GET {PIXEL}"), "", "").await;
    assert_eq!((reply.status, reply.code()), (503, "storage"));
    assert!(reply.header("retry-after").is_some());
    assert_eq!(ask(&server, "GET /i", "", "").await.code(), "body_empty");
    server.is_balanced().await;
}

#[tokio::test]
async fn a_page_may_send_cookies_and_its_origin_is_echoed() {
    let server = open().await;
    let origin = "Origin: https://shop.example\r\n";
    let asked = format!("{origin}Access-Control-Request-Headers: content-type, sp-anonymous\r\n");
    let told = |reply: &Reply| {
        assert_eq!(
            reply.header("access-control-allow-origin"),
            Some("https://shop.example"),
            "{reply:?}"
        );
        assert_eq!(reply.header("access-control-allow-credentials"), Some("true"), "{reply:?}");
        assert_eq!(reply.header("vary"), Some("Origin"), "{reply:?}");
    };
    let reply = ask(&server, &format!("OPTIONS {TP2}"), &asked, "").await;
    assert_eq!(reply.status, 204);
    told(&reply);
    let allowed = reply.header("access-control-allow-headers");
    assert_eq!(allowed, Some("content-type, sp-anonymous"));
    let reply = ask(&server, &format!("POST {TP2}"), origin, VIEW).await;
    assert_eq!(reply.status, 200);
    told(&reply);
    // A page may read why it was refused, too.
    told(&ask(&server, &format!("POST {TP2}"), origin, "{}").await);
    let reply = ask(&server, &format!("POST {TP2}"), "", VIEW).await;
    assert_eq!(reply.header("access-control-allow-origin"), None);
    server.is_balanced().await;
}

#[tokio::test]
async fn what_will_never_fit_is_said_so_that_trackers_give_up() {
    let server = open().await;
    let large = format!(r#"{{"data":[{{"e":"pv","page":"{}"}}]}}"#, "x".repeat(1_000));
    let reply = ask(&server, &format!("POST {TP2}"), "", &large).await;
    assert_eq!((reply.status, reply.code()), (400, "body_too_large"));
    assert!(server.kept().is_empty());
    server.is_balanced().await;
}

#[tokio::test]
async fn without_a_key_nothing_comes_in_where_no_tenant_is_configured() {
    let server = start().await;
    assert_eq!(ask(&server, &format!("GET {PIXEL}"), "", "").await.status, 401);
    assert_eq!(ask(&server, &format!("POST {TP2}"), "", VIEW).await.status, 401);
    assert!(server.kept().is_empty());
    server.is_balanced().await;
}
