//! Broken configurations, schemas, tenants and certificates while the server runs: the generation
//! before stays live, whole, and no request notices.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde_json::json;

use super::{balances, scale, tenant};
use crate::{
    server::{Server, request, wait_for},
    tally::Tally,
};

/// A running server with a configuration, a schema folder and a tenant.
struct Site {
    _dir: tempfile::TempDir,
    root: PathBuf,
    config: String,
    server: Server,
    key: String,
}

fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let (schemas, lake) = (root.join("schemas"), root.join("lake"));
    fs::create_dir_all(&schemas).unwrap();
    fs::write(schemas.join("a.json"), schema(1, "integer")).unwrap();
    let config = format!(
        "[schemas]\ndir = {schemas:?}\n[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {lake:?}\n\
         flush = {{ age = \"50ms\" }}\n"
    );
    let server = Server::configured(&root, &config);
    let key = tenant(&server, "acme");
    Site { _dir: dir, root, config, server, key }
}

fn schema(version: u32, of_type: &str) -> String {
    json!({"type": "object", "x-version": version, "properties": {"n": {"type": of_type}}})
        .to_string()
}

impl Site {
    fn reload(&self) -> (u16, String) {
        let answer = self.server.admin_post("/api/v1/reload", &json!({}));
        (answer.status, answer.body)
    }

    fn is_served(&self) {
        let body = b"{\"event_type\":\"a\",\"n\":1}";
        let answer = self.server.post("/v1/events", &self.key, "application/json", body);
        assert_eq!(answer.json()["accepted"], 1, "{answer:?}");
    }

    /// Breaks the file at `path`, sees that it is refused, mends it, sees that it is taken.
    fn survives(&self, what: &str, path: &Path, breaks: impl FnOnce(&Path)) {
        let good = fs::read(path).ok();
        breaks(path);
        let (status, body) = self.reload();
        assert_eq!(status, 422, "{what}: {body}");
        self.is_served();
        if path.is_dir() {
            fs::remove_dir(path).unwrap();
        } else if path.symlink_metadata().is_ok() {
            fs::remove_file(path).unwrap();
        }
        if let Some(good) = good {
            fs::write(path, good).unwrap();
        }
        let (status, body) = self.reload();
        assert_eq!(status, 200, "{what}, mended: {body}");
        self.is_served();
    }
}

/// Puts `text` in the place of a file.
fn text(text: impl AsRef<[u8]>) -> impl FnOnce(&Path) {
    move |path| fs::write(path, text).unwrap()
}

fn gone(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn folder(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::create_dir(path).unwrap();
}

fn dangling(path: &Path) {
    fs::remove_file(path).unwrap();
    symlink("/nowhere/at/all", path).unwrap();
}

/// A pipe that nobody writes to: who reads it waits for ever.
fn pipe(path: &Path) {
    fs::remove_file(path).unwrap();
    let done = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(done.success());
}

fn endless(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::File::create(path).unwrap().set_len(1 << 30).unwrap();
}

type Way = fn(&Path);

/// Ways to break a file that no text can.
const WAYS: &[(&str, Way)] = &[
    ("a pipe", pipe),
    ("gone", gone),
    ("a folder", folder),
    ("a dangling link", dangling),
    ("a gigabyte", endless),
];

fn broken_configs(config: &str) -> Vec<(&'static str, Vec<u8>)> {
    let with = |more: &str| format!("{more}\n{config}").into_bytes();
    let twice = format!("{config}\n[[sink]]\nname = \"lake\"\nkind = \"lake\"\n");
    vec![
        ("cut short", config.as_bytes()[..config.len() - 8].to_vec()),
        ("cut in a word", config.as_bytes()[..12].to_vec()),
        ("not UTF-8", [config.as_bytes(), b"# \xff\xfe"].concat()),
        ("NUL", [config.as_bytes(), b"\0"].concat()),
        ("another language", b"{\"log\": {\"dir\": \"x\"}}".to_vec()),
        ("YAML with aliases", b"a: &a [x, x]\nb: &b [*a, *a]\n".to_vec()),
        ("unknown section", with("[nonsense]\na = 1")),
        ("unknown field", with("[log]\nsegments = 1")),
        ("a section twice", with("[log]\n[log]")),
        ("a sink twice", twice.into_bytes()),
        ("text for a number", with("[edge.limits]\nevents = \"many\"")),
        ("a number for text", with("[edge]\nlisten = 8080")),
        ("a list for a section", with("edge = []")),
        ("a negative size", with("[edge.limits]\nbody_bytes = -1")),
        ("a size past all sizes", with("[edge.limits]\nbody_bytes = \"99999999999999999999GiB\"")),
        ("a quota of nothing", with("[defaults.quota]\nevents_per_second = 0")),
        ("a negative quota", with("[defaults.quota]\nevents_per_second = -5")),
        (
            "a quota past all numbers",
            with("[defaults.quota]\nevents_per_second = 99999999999999999999"),
        ),
        ("a quota with a point", with("[defaults.quota]\nbytes_per_second = 1.5")),
        ("values that do not go together", with("[budget]\nbytes = 1")),
        ("a token that is nowhere", with("[admin]\ntoken = \"file:/nowhere/at/all\"")),
        ("a token of nothing", with("[admin]\ntoken = \" \"")),
        ("a token of no variable", with("[admin]\ntoken = \"env:TIDEGATE_NO_SUCH\"")),
    ]
}

fn broken_tenants(good: &str) -> Vec<(&'static str, Vec<u8>)> {
    let with = |more: &str| format!("{more}\n{good}").into_bytes();
    vec![
        ("empty", Vec::new()),
        ("cut short", good.as_bytes()[..good.find("pii_secret").unwrap() + 20].to_vec()),
        ("not UTF-8", [good.as_bytes(), b"# \xff"].concat()),
        ("unknown field", with("colour = \"red\"")),
        ("type", good.replace("enabled = true", "enabled = 1").into_bytes()),
        (
            "a quota of nothing",
            good.replace("[quota]", "[quota]\nevents_per_second = 0").into_bytes(),
        ),
        (
            "a negative quota",
            good.replace("[quota]", "[quota]\nevents_per_second = -1").into_bytes(),
        ),
        (
            "a quota past all numbers",
            good.replace("[quota]", "[quota]\nbytes_burst = 1e99").into_bytes(),
        ),
        ("a hash that is none", good.replace("hash = \"", "hash = \"zz").into_bytes()),
        (
            "an end that is no time",
            good.replace("[[key]]", "[[key]]\nnot_after = \"soon\"").into_bytes(),
        ),
        (
            "a type that is no name",
            good.replace("[[key]]", "[[key]]\nevent_types = [\"../x\"]").into_bytes(),
        ),
    ]
}

#[test]
fn a_broken_reload_of_any_kind_leaves_the_generation_before() {
    let mut tally = Tally::new("threats::reload", "broken reload", &["P5", "P7"]);
    let site = site();
    let config = site.root.join("tidegate.toml");
    for (what, broken) in broken_configs(&site.config) {
        site.survives(what, &config, text(broken));
        tally.survived(1);
    }
    let acme = site.root.join("data/tenants/acme.toml");
    let schemas = site.root.join("schemas/a.json");
    for &(what, way) in WAYS {
        site.survives(what, &config, way);
        tally.survived(1);
        // A tenant or schema whose file is gone is gone: that is no fault.
        if what != "gone" {
            site.survives(what, &schemas, way);
            tally.survived(1);
        }
    }
    let good = fs::read_to_string(&acme).unwrap();
    assert!(good.contains("[quota]"), "{good}");
    for (what, broken) in broken_tenants(&good) {
        site.survives(what, &acme, text(broken));
        tally.survived(1);
    }
    for (what, way) in [("a folder", folder as Way), ("a gigabyte", endless), ("a pipe", pipe)] {
        site.survives(what, &acme, way);
        tally.survived(1);
    }
    for (what, broken) in [
        ("a stranger", "UPPER.toml"),
        ("a name with a blank", "a b.toml"),
        ("a copy of another's key", "aaaa.toml"),
    ] {
        let copy = acme.with_file_name(broken);
        site.survives(what, &copy, text(&good));
        tally.survived(1);
    }
    for (what, broken) in [
        ("empty", String::new()),
        ("cut short", "{\"type\": \"object\"".to_owned()),
        ("no schema", "[]".to_owned()),
        ("a keyword that cannot be", "{\"x-version\": 1, \"type\": 7}".to_owned()),
        ("other content under the same version", schema(1, "string")),
        ("a column of another type", schema(2, "string")),
        ("deep", format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000))),
    ] {
        site.survives(what, &schemas, text(broken));
        tally.survived(1);
    }
    balances(&site.server);
}

/// Files are replaced by writing over them, again and again, while they are read.
#[test]
fn a_hundred_reloads_while_files_change_under_them_fail_no_request() {
    let mut tally = Tally::new("threats::reload", "broken reload", &["P5", "P7"]);
    let site = Arc::new(site());
    let gone = tenant(&site.server, "gone");
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (site, stop, sent) = (Arc::clone(&site), Arc::clone(&stop), Arc::clone(&sent));
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    site.is_served();
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    // A tenant that is removed while it sends is refused from then on, and what it sent stays.
    let (site2, stop2) = (Arc::clone(&site), Arc::clone(&stop));
    let key = gone.clone();
    let leaving = std::thread::spawn(move || {
        let (mut accepted, mut refused) = (0u64, 0u64);
        while !stop2.load(Ordering::SeqCst) {
            let body = b"{\"event_type\":\"leaving\"}";
            match site2.server.post("/v1/events", &key, "application/json", body).status {
                200 => accepted += 1,
                401 => refused += 1,
                other => panic!("{other}"),
            }
        }
        (accepted, refused)
    });
    let config = site.root.join("tidegate.toml");
    let count = 100 * scale();
    for n in 0..count {
        let half = &site.config.as_bytes()[..n * 7 % site.config.len()];
        fs::write(&config, if n % 2 == 0 { half } else { site.config.as_bytes() }).unwrap();
        if n == count / 2 {
            fs::remove_file(site.root.join("data/tenants/gone.toml")).unwrap();
        }
        let (status, body) = site.reload();
        assert!(matches!(status, 200 | 422), "{body}");
        assert!(n % 2 == 0 || status == 200, "{body}");
        tally.survived(1);
    }
    let before = sent.load(Ordering::SeqCst);
    wait_for("requests after the reloads", || sent.load(Ordering::SeqCst) > before + 10);
    stop.store(true, Ordering::SeqCst);
    for thread in load {
        thread.join().unwrap();
    }
    let (accepted, refused) = leaving.join().unwrap();
    assert!(accepted > 0 && refused > 0, "{accepted} {refused}");
    let audit = balances(&site.server);
    let rows = audit["tenants"].as_array().unwrap();
    let stored = |name: &str| {
        let row = rows.iter().find(|r| r["event_type"] == name).unwrap();
        row["sinks"]["lake"]["stored"].as_u64().unwrap()
    };
    assert_eq!(stored("leaving"), accepted, "{audit:#}");
    assert_eq!(stored("a"), sent.load(Ordering::SeqCst), "{audit:#}");
}

#[test]
fn pairs_that_cannot_be_used_leave_the_certificate_before() {
    let mut tally = Tally::new("threats::reload", "broken reload", &["P7"]);
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let pair = |params: rcgen::CertificateParams| {
        let key = rcgen::KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let params = || rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let (good_cert, good_key) = pair(params());
    let (other_cert, other_key) = pair(params());
    let mut expired = params();
    expired.not_before = rcgen::date_time_ymd(2001, 1, 1);
    expired.not_after = rcgen::date_time_ymd(2002, 1, 1);
    let (expired_cert, expired_key) = pair(expired);
    let put = |c: &str, k: &str| {
        fs::write(&cert, c).unwrap();
        fs::write(&key, k).unwrap();
    };
    put(&good_cert, &good_key);
    let config = format!("[edge.tls]\ncert = {cert:?}\nkey = {key:?}\n");
    let server = Server::configured(dir.path(), &config);
    let reload = || {
        request(
            server.admin,
            "POST",
            "/api/v1/reload",
            &[("content-type", "application/json")],
            b"{}",
        )
    };
    let half = &good_cert[..good_cert.len() / 2];
    let swapped = format!("{good_key}\n{good_cert}");
    for (what, c, k) in [
        ("another's key", &*good_cert, &*other_key),
        ("another's certificate", &other_cert, &good_key),
        ("expired", &expired_cert, &expired_key),
        ("cut short", half, &good_key),
        ("empty", "", ""),
        ("no PEM", "nonsense", &good_key),
        ("no key in the key's file", &good_cert, &good_cert),
        ("no certificate in its file", &good_key, &good_key),
        ("a key that is cut short", &good_cert, &good_key[..good_key.len() / 2]),
        (
            "PEM of nothing",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &good_key,
        ),
    ] {
        put(c, k);
        let answer = reload();
        assert_eq!(answer.status, 422, "{what}: {answer:?}");
        assert!(!answer.body.contains("PRIVATE"), "{what}: {answer:?}");
        put(&good_cert, &good_key);
        assert_eq!(reload().status, 200, "{what}, mended");
        tally.survived(1);
    }
    for way in [folder as Way, endless, pipe, dangling] {
        for path in [&cert, &key] {
            way(path);
            assert_eq!(reload().status, 422);
            fs::remove_file(path).or_else(|_| fs::remove_dir(path)).unwrap();
            put(&good_cert, &good_key);
            assert_eq!(reload().status, 200);
            tally.survived(1);
        }
    }
    put(&swapped, &swapped);
    assert_eq!(reload().status, 200, "both in one file is a pair too");
}
