//! Plans of replays on the real server: what a window is found to hold, what is refused, and when a plan
//! is not run any more.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::server::{Server, files};

const NDJSON: &str = "application/x-ndjson";
const PLANS: &str = "/api/v1/replay/plans";

/// A server with two partitions, a lake and a schema of `order`, and three tenants on them.
struct World {
    dir: TempDir,
    server: Server,
    keys: BTreeMap<&'static str, String>,
}

fn order(version: u32, maximum: u32) -> String {
    let n = json!({"type": "integer", "maximum": maximum});
    json!({"type": "object", "x-version": version, "properties": {"n": n}}).to_string()
}

fn config(dir: &Path, partitions: u32) -> String {
    let (schemas, lake) = (dir.join("schemas"), dir.join("lake"));
    format!(
        "[log]\npartitions = {partitions}\n[schemas]\ndir = {schemas:?}\n[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {lake:?}\nflush = {{ age = \"100ms\" }}\n"
    )
}

impl World {
    fn new(partitions: u32) -> Self {
        let dir = tempdir().unwrap();
        fs::create_dir_all(dir.path().join("schemas")).unwrap();
        fs::write(dir.path().join("schemas/order.json"), order(1, 10)).unwrap();
        let server = Server::configured(dir.path(), &config(dir.path(), partitions));
        let mut keys = BTreeMap::new();
        for tenant in ["acme", "globex", "initech", "umbrella", "hooli"] {
            let added = server.admin_post("/api/v1/tenants", &json!({ "tenant": tenant })).json();
            keys.insert(tenant, added["key"].as_str().unwrap().to_owned());
        }
        Self { dir, server, keys }
    }

    /// One request of a tenant: orders with these numbers; above the schema's maximum: dead letters.
    fn send(&self, tenant: &str, numbers: &[u32]) {
        let line = |n: &u32| format!("{{\"event_type\":\"order\",\"n\":{n}}}\n");
        let body: String = numbers.iter().map(line).collect();
        let answer = self.server.post("/v1/events", &self.keys[tenant], NDJSON, body.as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    fn offsets(&self) -> Vec<u64> {
        let offsets = self.server.admin_get("/api/v1/offsets").json();
        let each = offsets["partitions"].as_array().unwrap();
        each.iter().map(|p| p["latest"].as_u64().unwrap()).collect()
    }

    /// The last line of the answer.
    fn ask(&self, request: Value) -> Value {
        let answer = self.server.admin_post(PLANS, &request);
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(answer.body.lines().last().unwrap()).unwrap()
    }

    fn plan(&self, request: Value) -> Value {
        let made = self.ask(request);
        assert!(made["plan"]["plan_id"].is_string(), "{made:#}");
        made["plan"].clone()
    }

    /// What a question is refused with, before or while the window is read.
    fn refused(&self, request: Value) -> Vec<String> {
        let answer = self.server.admin_post(PLANS, &request);
        let lines = match answer.status {
            422 => answer.json()["errors"].clone(),
            _ => serde_json::from_str::<Value>(answer.body.lines().last().unwrap()).unwrap()
                ["refused"]
                .clone(),
        };
        let lines = lines.as_array().unwrap_or_else(|| panic!("{request}: {answer:?}"));
        lines.iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    }

    fn apply(&self, plan: &Value) -> (u16, Value) {
        let body = json!({"plan": plan, "by": "ann"});
        let answer = self.server.admin_post("/api/v1/replay/jobs", &body);
        (answer.status, answer.json())
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ingestctl"));
        command.args(["--admin", &format!("http://{}", self.server.admin)]).args(arguments);
        command.env_remove("TIDEGATE_ADMIN_TOKEN").env("USER", "jo").env("HOSTNAME", "desk");
        command.stdin(Stdio::null()).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_plan_says_what_the_window_holds_and_touches_nothing() {
    let world = World::new(2);
    for round in 0..4 {
        for tenant in world.keys.keys() {
            world.send(tenant, &[round, 5, 99]);
        }
    }
    world.server.settle();
    let ends = world.offsets();
    assert!(ends.iter().all(|end| *end > 0) && ends.iter().sum::<u64>() == 60, "{ends:?}");
    let lake = || files(&world.dir.path().join("lake"), "");
    let before = lake();
    let whole = json!({"from": "earliest", "to": "latest"});
    let plan = world.plan(whole.clone());
    let window = plan["window"].as_array().unwrap();
    assert_eq!(window.len(), 2);
    for (slice, end) in window.iter().zip(&ends) {
        assert_eq!((&slice["from"], &slice["to"]), (&json!(0), &json!(end)));
        assert_eq!(slice["events"], json!(end));
        assert_eq!(slice["first"]["offset"], 0);
        assert_eq!(slice["last"]["offset"], json!(end - 1));
        assert_eq!(slice["first"]["event_type"], "order");
    }
    let counts = plan["counts"].as_array().unwrap();
    assert_eq!(counts.len(), 10, "five tenants, accepted and dead: {counts:#?}");
    let acme = |dead: bool| {
        counts.iter().find(|c| c["tenant"] == "acme" && c["dead_letters"] == dead).unwrap()
    };
    assert_eq!((&acme(false)["events"], &acme(true)["events"]), (&json!(8), &json!(4)));
    assert_eq!(acme(false)["schemas_then"][0]["version"], 1);
    assert_eq!(plan["judging"]["schemas"].as_array().unwrap().len(), 5);
    let place = plan["shadow"]["lake"].as_str().unwrap();
    assert!(
        place.ends_with(&format!("lake/shadow/{}", plan["plan_id"].as_str().unwrap())),
        "{place}"
    );
    // The same again, however it is written; whatever came in meanwhile.
    world.send("acme", &[1]);
    let listed = format!("0:{},1:{}", ends[0], ends[1]);
    let again = world.plan(json!({"from": "0:0,1:0", "to": listed}));
    assert_eq!(again["plan_id"], plan["plan_id"]);
    let longer = world.plan(whole);
    assert_ne!(longer["plan_id"], plan["plan_id"]);
    // Filters, and a slice that cuts a request.
    let some = world.plan(json!({"from": "0:1,1:1", "to": listed, "tenants": ["globex", "acme", "acme"], "dead_letters_only": true}));
    let events: u64 =
        some["window"].as_array().unwrap().iter().map(|s| s["events"].as_u64().unwrap()).sum();
    assert_eq!(events, 8, "{some:#}");
    assert_eq!(some["selection"]["tenants"], json!(["acme", "globex"]));
    assert!(lake().len() <= before.len() + 2, "only the one live event's file is new");
    assert!(!world.dir.path().join("lake/shadow").exists());
    assert!(!world.dir.path().join("data/control.jsonl").exists(), "nothing was done");
}

#[test]
fn what_is_no_window_is_refused_with_what_would_be_right() {
    let world = World::new(2);
    for tenant in world.keys.keys() {
        world.send(tenant, &[1, 2, 3]);
    }
    let ends = world.offsets();
    for (request, said) in [
        (json!({"from": "5", "to": "latest"}), "--from 5 is an offset of which partition? The log has 2: write --from 0:5,1:5, or --partition 0 --from 5 for one alone".to_owned()),
        (json!({"from": "0:0", "to": "0:1,1:2"}), "--from names partitions 0, --to names 0, 1: name the same, such as --from 0:0,1:0 --to 0:1,1:2".to_owned()),
        (json!({"from": "0:0,1:0", "to": "0:1,1:999"}), format!("--to 0:1,1:999 is past the end: partition 1 ends at {} (the offset that the next event gets): write --to 0:1,1:{} or --to latest", ends[1], ends[1])),
        (json!({"from": "0:2", "to": "0:1"}), "--from 0:2 --to 0:1 ends before it begins: partition 0 from 2 to 1; write --from 0:1 --to 0:2".to_owned()),
        (json!({"from_time": "2026-11-21T10:00", "to": "latest"}), "--from-time \"2026-11-21T10:00\" has no zone: write --from-time 2026-11-21T10:00Z for UTC, or with its offset, such as --from-time 2026-11-21T10:00+01:00".to_owned()),
        (json!({"from": "deploy:v9", "to": "latest"}), "deploy:v9: no such mark; no mark was set yet: `ingestctl mark deploy:TAG` sets one".to_owned()),
        (json!({"from": "earliest", "to": "latest", "sinks": ["lakes"]}), "--sink lakes: no such sink; there are lake".to_owned()),
        (json!({"from": "earliest", "to": "latest", "tenants": ["acmee"]}), "--tenant acmee: no such tenant; there are acme, globex, hooli, initech, umbrella".to_owned()),
        (json!({"from": "earliest", "to": "latest", "event_types": ["orders"]}), "--event-type orders: no such event type; there are order".to_owned()),
        (json!({"from": "earliest", "to": "latest", "dead_letters_only": true}), "--from earliest --to latest holds no event that these filters take; it holds acme/order (3 events)".to_owned()),
        (json!({"to": "latest"}), "say where the window begins: --from 0:1234".to_owned()),
    ] {
        let found = world.refused(request.clone());
        assert!(found[0].starts_with(&said), "{request}:\n{}\n{said}", found[0]);
    }
    // As on the command line: exit status 2, and the same words.
    let done = world.ctl(&["replay", "--from", "5", "--to", "latest", "--shadow"]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(text(&done.stderr).contains("write --from 0:5,1:5"), "{done:?}");
    for line in [
        &["--json", "replay", "list"][..],
        &["replay", "--json", "list"],
        &["replay", "list", "--json"],
    ] {
        assert_eq!(text(&world.ctl(line).stdout), "{\"jobs\":[]}\n", "{line:?}");
    }
    let done = world.ctl(&["replay", "--from", "5", "list"]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    let done = world.ctl(&["replay", "--from", "earliest", "--to", "latest"]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(text(&done.stderr).contains("add --shadow"), "{done:?}");
}

#[test]
fn a_time_is_the_first_event_received_then_or_later() {
    let world = World::new(1);
    let mut times = Vec::new();
    for round in 0..5 {
        world.send("acme", &[round, round]);
        let plan = world.plan(json!({"from": (round * 2).to_string(), "to": "latest"}));
        times.push(plan["window"][0]["first"]["received_at"].as_i64().unwrap());
    }
    assert!(times.is_sorted() && times[0] < times[4], "{times:?}");
    let text = |micros: i64| format!("{:.6}", jiff::Timestamp::from_microsecond(micros).unwrap());
    for (n, time) in times.iter().enumerate() {
        let first = times.iter().position(|t| t == time).unwrap() as u64;
        let plan = world.plan(json!({"from_time": text(*time), "to": "latest"}));
        assert_eq!(plan["window"][0]["from"], json!(first * 2), "at {n}");
        let behind = times.iter().position(|t| *t > *time);
        let asked = json!({"from_time": text(time + 1), "to": "10"});
        match behind {
            Some(next) => {
                assert_eq!(world.plan(asked)["window"][0]["from"], json!(next * 2), "behind {n}");
            }
            None => assert!(world.refused(asked)[0].contains("holds nothing"), "behind {n}"),
        }
    }
    let to = world.plan(json!({"from": "0", "to_time": text(times[4])}));
    assert_eq!(
        to["window"][0]["to"],
        json!(times.iter().position(|t| *t == times[4]).unwrap() * 2)
    );
    let later = world.refused(json!({"from": "0", "to_time": "2999-01-01T00:00Z"}));
    assert_eq!(later, ["--to-time 2999-01-01T00:00Z is still to come: write --to latest"]);
}

#[test]
fn marks_name_where_every_partition_ended() {
    let world = World::new(2);
    let tenants: Vec<&str> = world.keys.keys().copied().collect();
    tenants.iter().for_each(|tenant| world.send(tenant, &[1, 99]));
    let first = world.offsets();
    let done = world.ctl(&["mark", "deploy:v1"]);
    assert_eq!(text(&done.stdout), format!("deploy:v1 is 0:{},1:{}\n", first[0], first[1]));
    tenants.iter().for_each(|tenant| world.send(tenant, &[2]));
    let second = world.offsets();
    assert!(world.ctl(&["mark", "deploy:v2", "--by", "ci"]).status.success());
    let again = world.ctl(&["mark", "deploy:v1"]);
    assert_eq!(again.status.code(), Some(3), "{again:?}");
    assert!(text(&again.stderr).contains("deploy:v1 was set already"), "{again:?}");
    assert!(text(&again.stderr).contains("by jo@desk"), "{again:?}");
    let plan = world.plan(json!({"from": "deploy:v1", "to": "deploy:v2"}));
    for (slice, (from, to)) in
        plan["window"].as_array().unwrap().iter().zip(first.iter().zip(&second))
    {
        assert_eq!((&slice["from"], &slice["to"]), (&json!(from), &json!(to)));
    }
    let turned = world.refused(json!({"from": "deploy:v2", "to": "deploy:v1"}));
    assert!(turned[0].ends_with("write --from deploy:v1 --to deploy:v2"), "{turned:?}");
    let unknown = world.refused(json!({"from": "deploy:v3", "to": "latest"}));
    assert_eq!(unknown, ["deploy:v3: no such mark; there are deploy:v2, deploy:v1"]);
    // They outlive the process.
    let World { dir, server, .. } = world;
    server.kill();
    let server = Server::configured(dir.path(), &config(dir.path(), 2));
    let marks = server.admin_get("/api/v1/marks").json();
    assert_eq!(marks["marks"][1]["name"], "deploy:v2", "{marks}");
    assert_eq!(marks["marks"][1]["by"], "ci", "{marks}");
    assert_eq!(marks["marks"][0]["offsets"][1]["offset"], json!(first[1]), "{marks}");
}

#[test]
fn a_damaged_part_of_the_window_is_named_and_the_rest_can_be_planned() {
    let world = World::new(1);
    (0..3).for_each(|n| world.send("acme", &[n; 4]));
    let World { dir, server, keys } = world;
    server.kill();
    let segment = dir.path().join("data/log/partition-0").join(format!("{:020}.seg", 0));
    let mut bytes = fs::read(&segment).unwrap();
    // The second of three frames that are alike.
    let event = b"\"order\",\"n\":1}";
    let at =
        bytes.windows(event.len()).position(|w| w == event).expect("frames are stored as they are");
    bytes[at + 3] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let server = Server::configured(dir.path(), &config(dir.path(), 1));
    let world = World { dir, server, keys };
    let refused = world.refused(json!({"from": "2", "to": "latest"}));
    assert_eq!(
        refused,
        [
            "partition 0: 4 to 8 is damaged (`ingestctl log quarantine show 0/4`), so that part of the window is gone; take the part before it: --to 0:4, or behind it: --from 0:8"
        ]
    );
    for (from, to, events) in [("2", "4", 2), ("8", "latest", 4)] {
        assert_eq!(world.plan(json!({"from": from, "to": to}))["window"][0]["events"], events);
    }
    let inside = world.refused(json!({"from": "5", "to": "7"}));
    assert!(
        inside[0].contains("5 to 7 is damaged")
            && inside[0].ends_with("nothing of the window is left"),
        "{inside:?}"
    );
}

#[test]
fn a_plan_is_not_run_once_schemas_or_dead_letters_are_others() {
    let world = World::new(1);
    world.send("acme", &[1, 50, 60, 2]);
    let whole = json!({"from": "0", "to": "4"});
    let (plan, recorded) = (
        world.plan(whole.clone()),
        world.plan(json!({"from": "0", "to": "4", "judging": "as_recorded"})),
    );
    let mut changed = plan.clone();
    changed["window"][0]["to"] = json!(3);
    let (status, said) = world.apply(&changed);
    assert!(status == 400 && said["detail"].as_str().unwrap().contains("it was changed"), "{said}");
    fs::write(world.dir.path().join("schemas/order.json"), order(2, 55)).unwrap();
    assert_eq!(world.server.admin_post("/api/v1/reload", &json!({})).status, 200);
    let (status, said) = world.apply(&plan);
    assert_eq!((status, &said["code"]), (409, &json!("world_changed")), "{said}");
    let why = said["errors"][0].as_str().unwrap();
    assert!(
        why.starts_with("the schema of acme/order was version 1 (")
            && why.contains("it is version 2 ("),
        "{why}"
    );
    // Judged by nothing, it does not matter; made again, it can be run.
    assert_eq!(world.apply(&recorded).0, 200);
    let plan = world.plan(whole.clone());
    assert_eq!(plan["judging"]["schemas"][0]["version"], 2);
    // A re-drive puts the dead letter into the log anew: the plan of before would have it twice.
    let redriven = world
        .server
        .admin_post("/api/v1/dead-letters/redrive", &json!({"tenant": "acme", "by": "ann"}));
    assert_eq!(redriven.json()["accepted"], 1, "{redriven:?}");
    let (status, said) = world.apply(&plan);
    assert_eq!(status, 409, "{said}");
    let why = said["errors"][0].as_str().unwrap();
    assert!(why.contains("re-driven at") && why.contains("by ann"), "{why}");
    let plan = world.plan(whole);
    assert_eq!(plan["kept_dead"], json!([{"partition": 0, "offsets": [{"from": 1, "to": 2}]}]));
    assert_eq!(world.apply(&plan).0, 200);
    // What was done is written down; what was refused is not.
    let control = fs::read_to_string(world.dir.path().join("data/control.jsonl")).unwrap();
    let actions: Vec<String> = control
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["action"]["action"].to_string())
        .collect();
    assert_eq!(actions, ["\"replay.apply\"", "\"dead_letters.redrive\"", "\"replay.apply\""]);
}

#[test]
fn a_candidates_schemas_are_checked_pinned_and_carried() {
    let world = World::new(1);
    world.send("acme", &[1, 50]);
    let dir = tempdir().unwrap();
    let file = dir.path().join("plan.json");
    let (folder, file) = (dir.path().display().to_string(), file.display().to_string());
    let planned = |arguments: &[&str]| {
        let line = ["replay", "--from", "0", "--to", "2", "--shadow", "--plan", &file];
        world.ctl(&[&line, arguments].concat())
    };
    let write = |text: String| fs::write(dir.path().join("order.json"), text).unwrap();
    write("{\"type\": \"object\"".to_owned());
    let done = planned(&["--schemas", &folder]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(text(&done.stderr).contains("order.json"), "{done:?}");
    // Other content under the version that is live could never be loaded.
    write(order(1, 100));
    let done = planned(&["--schemas", &folder]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(text(&done.stderr).contains("count x-version up, to 2"), "{done:?}");
    write(order(2, 100));
    let done = planned(&["--schemas", &folder, "--json"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let shown: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&shown["live"], &shown["judging"]["by"]), (&json!("nothing"), &json!("candidate")));
    fs::remove_file(dir.path().join("order.json")).unwrap();
    let plan: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(plan["plan_id"], shown["plan_id"]);
    let hash = plan["judging"]["schemas"][0]["hash"].as_str().unwrap();
    assert!(plan["judging"]["contents"][hash].as_str().unwrap().contains("100"), "{plan:#}");
    // Without a terminal nobody can say yes.
    let done = world.ctl(&["replay", "apply", &file]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(
        text(&done.stderr).contains("to replay 2 events into the shadow add --yes"),
        "{done:?}"
    );
    let done = world.ctl(&["replay", "apply", &file, "--yes", "--wait", "--json"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let result: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(result, json!({"plan_id": plan["plan_id"], "state": "done", "events": 2}));
}

#[test]
fn the_plan_is_shown_as_people_read_it() {
    let world = World::new(1);
    world.send("acme", &[1, 2, 99]);
    let done = world.ctl(&["replay", "--from", "0", "--to", "3", "--shadow", "--max-rate", "1"]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    let out = text(&done.stdout);
    for part in [
        ": 3 events, ",
        "\n--from 0 --to 3\n",
        "\npartition 0: 0:0 to 0:3, 3 events, ",
        "\n  first  0:0  20",
        "\n  last   0:2  20",
        "TENANT/TYPE  WAS          EVENTS  BYTES  SCHEMA THEN  NOW\n",
        "acme/order   accepted          2   ",
        "acme/order   dead letter       1   ",
        "v1           v1, the same\n",
        "\njudged by the schemas that are live\n",
        "\nshadow of lake: ",
        "\nduration: 3.0 s or more, at 1 events/s (--max-rate)\n",
        "\nlive: nothing\n",
    ] {
        assert!(out.contains(part), "{part:?} in\n{out}");
    }
    assert!(
        text(&done.stderr).contains("to replay 3 events into the shadow add --yes"),
        "{done:?}"
    );
    assert_eq!(world.server.admin_get("/api/v1/replay/jobs").json()["jobs"], json!([]));
}
