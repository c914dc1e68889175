//! Tenants: files, keys, rotation, and names that are not theirs.

use std::{os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use tidegate_event::TenantId;
use tidegate_ingest::{
    clock::{ManualClock, SystemClock},
    tenants::{AuthError, ChangeError, NewPublicKey, NewTenant, Quota, Tenants, TenantsError},
};

use super::kit::start;

fn id(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn new(name: &str) -> NewTenant {
    NewTenant { id: id(name), quota: Quota::default(), strict: false }
}

fn load(dir: &std::path::Path) -> Result<Tenants, TenantsError> {
    Tenants::load(dir, Quota::default(), Arc::new(SystemClock))
}

#[test]
fn a_tenant_is_known_by_its_key_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let tenants = load(dir.path()).unwrap();
    let (a, b) = (tenants.add(&new("a")).unwrap(), tenants.add(&new("b")).unwrap());
    assert!(matches!(tenants.add(&new("a")), Err(ChangeError::Exists(_))));
    for tenants in [&tenants, &load(dir.path()).unwrap()] {
        assert_eq!(tenants.authenticate(&a).unwrap().tenant.id, id("a"));
        assert_eq!(tenants.authenticate(&b).unwrap().tenant.id, id("b"));
        let mixed = format!("{}{}", &a[..17], &b[17..]);
        assert_eq!(tenants.authenticate(&mixed).unwrap_err(), AuthError::Unknown);
    }
    for name in ["a.toml", ".pepper"] {
        let file = dir.path().join(name);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let secret = a.rsplit('_').next().unwrap();
        assert!(!std::fs::read_to_string(&file).unwrap().contains(&secret[..43]));
    }
}

#[test]
fn the_secret_of_personal_data_is_each_tenants_own() {
    let dir = tempfile::tempdir().unwrap();
    let tenants = load(dir.path()).unwrap().with_dev("tgk_dev");
    tenants.add(&new("a")).unwrap();
    tenants.add(&new("b")).unwrap();
    let secret = |name: &str| tenants.get(&id(name)).unwrap().pii_secret.0.clone();
    assert_eq!(secret("a").len(), 32);
    assert_ne!(secret("a"), secret("b"));
    assert_ne!(secret("a"), secret("dev"));
    assert_eq!(format!("{:?}", tenants.get(&id("a")).unwrap().pii_secret), "[secret]");
}

#[test]
fn a_rotated_key_lives_beside_the_new_one_until_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(1_700_000_000_000_000));
    let tenants = Tenants::load(dir.path(), Quota::default(), clock.clone()).unwrap();
    let first = tenants.add(&new("a")).unwrap();
    let second = tenants.rotate(&id("a"), Some(Duration::from_secs(60))).unwrap();
    assert_eq!(second.old_keys_expire_at, Some(1_700_000_060_000_000));
    assert!(tenants.authenticate(&first).is_ok());
    assert!(tenants.authenticate(&second.key).is_ok());
    clock.advance(61_000_000);
    assert_eq!(tenants.authenticate(&first).unwrap_err(), AuthError::Expired);
    assert!(tenants.authenticate(&second.key).is_ok());
    let third = tenants.rotate(&id("a"), None).unwrap();
    assert_eq!(third.old_keys_expire_at, None);
    assert_eq!(tenants.authenticate(&first).unwrap_err(), AuthError::Unknown);
    assert!(tenants.authenticate(&second.key).is_ok());
    assert_eq!(tenants.get(&id("a")).unwrap().keys.len(), 2);
    tenants.disable(&id("a")).unwrap();
    assert_eq!(tenants.authenticate(&third.key).unwrap_err(), AuthError::Disabled);
    tenants.enable(&id("a")).unwrap();
    assert!(tenants.authenticate(&third.key).is_ok());
    assert!(matches!(tenants.rotate(&id("b"), None), Err(ChangeError::Missing(_))));
}

#[test]
fn public_keys_come_and_go_apart_from_the_secret_ones() {
    let dir = tempfile::tempdir().unwrap();
    let tenants = load(dir.path()).unwrap();
    let first = tenants.add(&new("a")).unwrap();
    let origins = vec!["https://shop.example:8443".to_owned()];
    let made = NewPublicKey { origins: origins.clone(), event_types: Some(vec!["t".to_owned()]) };
    let public = tenants.add_public(&id("a"), &made).unwrap();
    let other = tenants.add_public(&id("a"), &NewPublicKey::default()).unwrap();
    let second = tenants.rotate(&id("a"), Some(Duration::ZERO)).unwrap().key;
    for tenants in [&tenants, &load(dir.path()).unwrap()] {
        let caller = tenants.authenticate(&public.text).unwrap();
        assert_eq!(caller.public(), Some(&origins[..]));
        assert_eq!(caller.event_types().unwrap(), ["t"]);
        assert_eq!(tenants.authenticate(&other.text).unwrap().public(), Some(&[][..]));
        assert_eq!(tenants.authenticate(&second).unwrap().public(), None);
        assert_eq!(tenants.authenticate(&first).unwrap_err(), AuthError::Expired);
    }
    // A file that says otherwise makes no secret key a public one, nor the other way round.
    let file = dir.path().join("a.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replace("public = true\n", "").replace("origins", "# origins"))
        .unwrap();
    let fallen = load(dir.path()).unwrap();
    assert_eq!(fallen.authenticate(&other.text).unwrap_err(), AuthError::Unknown);
    assert!(fallen.authenticate(&second).is_ok());
    std::fs::write(&file, &good).unwrap();
    tenants.revoke_public(&id("a"), &public.id).unwrap();
    assert_eq!(tenants.authenticate(&public.text).unwrap_err(), AuthError::Unknown);
    assert!(tenants.authenticate(&other.text).is_ok());
    let secret_id = second[4..16].to_owned();
    for gone in [public.id.clone(), secret_id] {
        let error = tenants.revoke_public(&id("a"), &gone).unwrap_err();
        assert!(matches!(error, ChangeError::NoSuchKey(..)), "{error}");
    }
    assert!(tenants.authenticate(&second).is_ok());
    for wrong in ["shop.example", "https://", "https://a/b", "https://A.example", "*", "null"] {
        let new = NewPublicKey { origins: vec![wrong.to_owned()], event_types: None };
        let error = tenants.add_public(&id("a"), &new).unwrap_err();
        assert!(matches!(error, ChangeError::Fault(_)), "{wrong}: {error}");
    }
    let dev = load(&dir.path().join("dev")).unwrap().with_dev("tgk_dev");
    assert!(dev.authenticate("tgp_dev").unwrap().public().is_some());
    assert!(dev.authenticate("tgk_dev").unwrap().public().is_none());
    let dev = load(&dir.path().join("dev")).unwrap().with_dev("tgk_dev_x");
    assert_eq!(dev.authenticate("tgp_dev").unwrap_err(), AuthError::Unknown);
}

#[test]
fn a_broken_file_keeps_its_tenant_as_it_was_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let tenants = load(dir.path()).unwrap();
    let (a, b) = (tenants.add(&new("a")).unwrap(), tenants.add(&new("b")).unwrap());
    let file = |name: &str| dir.path().join(format!("{name}.toml"));
    let good = std::fs::read_to_string(file("a")).unwrap();
    for broken in ["", "nonsense", "enabled = 1", &good.replace("enabled", "enbled")] {
        std::fs::write(file("a"), broken).unwrap();
        let text = std::fs::read_to_string(file("b")).unwrap();
        std::fs::write(file("b"), text.replace("enabled = true", "enabled = false")).unwrap();
        let faults = tenants.reload().unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].path.ends_with("a.toml"));
        assert!(tenants.authenticate(&a).is_ok(), "{broken}");
        assert_eq!(tenants.authenticate(&b).unwrap_err(), AuthError::Disabled);
        tenants.enable(&id("b")).unwrap();
    }
    assert!(matches!(load(dir.path()), Err(TenantsError::Files(faults)) if faults.len() == 1));
    std::fs::remove_file(file("a")).unwrap();
    tenants.reload().unwrap();
    assert_eq!(tenants.authenticate(&a).unwrap_err(), AuthError::Unknown);
    std::fs::remove_file(dir.path().join(".pepper")).unwrap();
    assert!(matches!(load(dir.path()), Err(TenantsError::PepperLost(_))));
}

#[test]
fn quotas_left_open_come_from_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let defaults =
        Quota { events_per_second: Some(5), bytes_per_second: Some(7), ..Quota::default() };
    let tenants = Tenants::load(dir.path(), defaults, Arc::new(SystemClock)).unwrap();
    let quota = Quota { events_per_second: Some(50), ..Quota::default() };
    tenants.add(&NewTenant { id: id("a"), quota, strict: true }).unwrap();
    let tenant = tenants.get(&id("a")).unwrap();
    assert_eq!(tenant.quota.events_per_second, Some(50));
    assert_eq!(tenant.quota.bytes_per_second, Some(7));
    assert!(tenant.strict);
    let zero = Quota { events_per_second: Some(0), ..Quota::default() };
    let refused = tenants.add(&NewTenant { id: id("b"), quota: zero, strict: false });
    assert!(matches!(refused, Err(ChangeError::Fault(_))));
    assert_eq!(tenants.list().len(), 1);
}

#[tokio::test]
async fn a_file_changed_by_hand_is_live_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let tenants = Arc::new(load(dir.path()).unwrap());
    let key = tenants.add(&new("a")).unwrap();
    let watcher = tokio::spawn(tenants.clone().watch());
    let file = dir.path().join("a.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("enabled = true", "enabled = false")).unwrap();
    for _ in 0..1000 {
        if tenants.authenticate(&key).is_err() {
            watcher.abort();
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the change was not seen");
}

#[tokio::test]
async fn a_key_is_refused_as_soon_as_its_tenant_is_disabled() {
    let server = start().await;
    let one = r#"{"event_type":"t"}"#;
    server.json(one).await.counts(1, 0, 0);
    server.tenants.disable(&id("acme")).unwrap();
    server.json(one).await.is_problem(401, "key_invalid");
    server.tenants.enable(&id("acme")).unwrap();
    server.json(one).await.counts(1, 0, 0);
}

#[tokio::test]
async fn whatever_a_request_claims_the_key_names_the_tenant() {
    let server = start().await;
    server.tenants.add(&new("victim")).unwrap();
    let claims = "X-Scope-OrgID: victim\r\nX-Tenant: victim\r\nX-Tidegate-Tenant: victim\r\n\
                  Tenant: victim\r\nX-Forwarded-User: victim\r\nBaggage: tenant=victim\r\n\
                  Content-Type: application/json\r\n";
    let body = r#"{"event_type":"t","tenant":"victim","tenant_id":"victim","_tenant":"victim"}"#;
    server.post(claims, body.as_bytes()).await.counts(1, 0, 0);
    let request = server.head(claims).replace("/v1/events", "/v1/events?tenant=victim");
    let request = format!("{request}Content-Length: {}\r\n\r\n{body}", body.len());
    server.raw(request.as_bytes()).await.counts(1, 0, 0);
    for batch in server.log.batches.lock().unwrap().iter() {
        assert_eq!(batch.tenant, id("acme"));
        assert_eq!(tidegate_event::BatchView::parse(&batch.body).unwrap().tenant, "acme");
    }
    assert!(server.books.copy().keys().all(|tenant| *tenant == id("acme")));
}

#[tokio::test]
async fn a_key_bound_to_types_sends_no_others() {
    let server = start().await;
    let file = server.dir.path().join("acme.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}event_types = [\"t\"]\n")).unwrap();
    server.tenants.reload().unwrap();
    server.json(r#"{"event_type":"t"}"#).await.counts(1, 0, 0);
    let some = server.json(r#"[{"event_type":"t"},{"event_type":"u"}]"#).await;
    some.counts(1, 0, 1);
    assert_eq!(some.body["errors"][0]["code"], "type_forbidden");
    let none = server.json(r#"[{"event_type":"v"},{"event_type":"u"}]"#).await;
    none.is_problem(403, "types_forbidden");
    // Where the head settles the type, the body is not read.
    let early = server.head(
        "Content-Type: application/json\r\nce-specversion: 1.0\r\nce-id: 1\r\nce-source: s\r\n\
         ce-type: u\r\nContent-Length: 1000\r\n\r\n",
    );
    server.raw(early.as_bytes()).await.is_problem(403, "types_forbidden");
    server.is_balanced().await;
}

#[tokio::test]
async fn rotation_under_load_fails_no_request() {
    let server = start().await;
    let mut keys = vec![server.key.clone()];
    for _ in 0..20 {
        for key in keys.iter().rev().take(2) {
            let body = r#"{"event_type":"t"}"#;
            let request = format!(
                "POST /v1/events HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\nContent-Type: \
                 application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            server.raw(request.as_bytes()).await.counts(1, 0, 0);
        }
        keys.push(server.tenants.rotate(&id("acme"), None).unwrap().key);
    }
}

#[test]
fn processes_that_share_a_new_folder_and_start_at_once_check_keys_by_the_same_pepper() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("tenants");
    let start = std::sync::Barrier::new(8);
    let loaded: Vec<Tenants> = std::thread::scope(|scope| {
        let load = || {
            start.wait();
            Tenants::load(&shared, Quota::default(), Arc::new(SystemClock)).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let id = TenantId::new("acme").unwrap();
    let new = NewTenant { id, quota: Quota::default(), strict: false };
    let key = loaded[0].add(&new).unwrap();
    for tenants in &loaded {
        tenants.reload().unwrap();
        assert!(tenants.authenticate(&key).is_ok(), "a key that one of them made is known to all");
    }
    let left: Vec<_> =
        std::fs::read_dir(&shared).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the pepper and the tenant, and nothing half made: {left:?}");
}
