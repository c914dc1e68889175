//! What stands in the lake's files, value by value.

use serde_json::json;
use tidegate_event::Code;
use tidegate_ingest::sink::{SinkConfig, SinkContext, lake::Lake};

use super::{HOUR, MORNING, Pipe, config, schema, tree};

#[test]
fn each_row_has_our_columns_the_schemas_and_the_rest() {
    let mut pipe = Pipe::new();
    let config = config(10);
    pipe.append_as(
        "acme",
        schema(2),
        &[("view", "{\"n\":7,\"name\":\"é\",\"x\":{\"y\":1}}", None)],
    );
    pipe.append_as("acme", schema(2), &[("view", "{\"name\":\"b\"}", None)]);
    pipe.run(&config);
    let rows = pipe.rows(&config);
    let log_id = pipe.log.handle().log_id().to_owned();
    let names: Vec<&String> = rows[0].1.as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        [
            "event_id",
            "event_time",
            "received_at",
            "log_id",
            "log_partition",
            "log_offset",
            "schema_version",
            "n",
            "name",
            "custom"
        ]
    );
    assert_eq!(rows[0].1["event_time"], MORNING - 1_000);
    assert_eq!(rows[0].1["received_at"], MORNING);
    assert_eq!(rows[0].1["log_id"], json!(log_id));
    assert_eq!(rows[0].1["schema_version"], 2);
    assert_eq!((&rows[0].1["n"], &rows[0].1["name"]), (&json!(7), &json!("é")));
    assert_eq!(rows[0].1["custom"], "{\"x\":{\"y\":1}}");
    assert_eq!((&rows[1].1["n"], &rows[1].1["custom"]), (&json!(null), &json!("{}")));
    assert_ne!(rows[0].1["event_id"], rows[1].1["event_id"]);
}

/// One window with two schemas and an hour's turn: a file for each, every event in one.
#[test]
fn a_file_holds_one_schema_and_one_hour() {
    let mut pipe = Pipe::new();
    let config = config(100);
    for version in [1, 2, 1, 2] {
        pipe.append_as("acme", schema(version), &[("view", "{\"n\":1,\"name\":\"a\"}", None)]);
    }
    pipe.clock.advance(HOUR);
    pipe.append_as("acme", schema(2), &[("view", "{\"n\":1}", None)]);
    pipe.run(&config);
    let id = pipe.log.handle().log_id().to_owned();
    let folder = "events/tenant=acme/event_type=view/date=2026-11-21";
    let files: Vec<String> = tree(&pipe.lake()).into_keys().collect();
    let expected = ["hour=10/ID-0-0-2", "hour=10/ID-0-1-3", "hour=11/ID-0-4-4"]
        .map(|name| format!("{folder}/{}.parquet", name.replace("ID", &id)));
    assert_eq!(files, expected);
    assert_eq!(pipe.offsets(&config)["acme/view"], [0, 1, 2, 3, 4]);
    let with_name = |row: &&(String, serde_json::Value)| row.1.get("name").is_some();
    assert_eq!(pipe.rows(&config).iter().filter(with_name).count(), 3);
}

#[test]
fn dead_letters_lie_apart_as_they_came() {
    let mut pipe = Pipe::new();
    let config = config(10);
    let raw = "{\"a\":1, \"a\":2}";
    pipe.append("acme", &[("view", raw, Some(Code::DuplicateKey)), ("view", "{}", None)]);
    pipe.run(&config);
    let rows = pipe.rows(&config);
    let (name, row) = &rows.iter().find(|(name, _)| name.contains("dead")).unwrap();
    assert_eq!(name, "acme/view (dead letters)");
    assert_eq!(row["reason"], "duplicate_key");
    assert_eq!((&row["field"], &row["message"]), (&json!("/x"), &json!("no")));
    assert_eq!(row["raw"], raw);
    assert_eq!(rows.len(), 2);
}

#[test]
fn jsonl_carries_the_same_rows() {
    for format in ["jsonl", "jsonl.gz", "jsonl.zst"] {
        let mut pipe = Pipe::new();
        let text = format!("name='lake'\nkind='lake'\nflush.age='1h'\noptions.format='{format}'");
        let config: SinkConfig = toml::from_str(&text).unwrap();
        pipe.append_as("acme", schema(2), &[("view", "{\"n\":1,\"x\":[1.50]}", None)]);
        pipe.append("acme", &[("view", "{\"a\":1,\"a\":2}", Some(Code::DuplicateKey))]);
        pipe.run(&config);
        let rows = pipe.rows(&config);
        assert_eq!(rows[1].1["custom"], json!({"x":[1.5]}));
        assert_eq!(rows[1].1["received_at"], "2026-11-21T10:00:00.000000Z");
        assert_eq!((&rows[1].1["n"], &rows[1].1["name"]), (&json!(1), &json!(null)));
        assert_eq!(rows[0].1["raw"], "{\"a\":1,\"a\":2}");
        assert!(tree(&pipe.lake()).keys().all(|name| name.ends_with(&format!(".{format}"))));
        // The same window again finds its own files.
        let before = tree(&pipe.lake());
        std::fs::remove_file(pipe.data().join("sinks/lake-0.json")).unwrap();
        pipe.run(&config);
        assert_eq!(tree(&pipe.lake()), before);
        let check = pipe.reader(&config).check_lane(&super::lane("acme", "view", true)).unwrap();
        assert_eq!((check[0].count, check[0].min.0), (1, 1));
    }
}

/// Leaves a lake behind for readers that are not ours: set `TIDEGATE_TEST_LAKE` to a folder.
#[test]
fn a_lake_for_other_readers_is_written() {
    let mut pipe = Pipe::new();
    let folder = std::env::var("TIDEGATE_TEST_LAKE").ok();
    let mut config = config(100);
    let lake = folder.map_or_else(|| pipe.lake(), std::path::PathBuf::from);
    config.url = Some(lake.to_str().unwrap().to_owned());
    for hour in 0..3 {
        for i in 0..200 {
            let raw = format!("{{\"n\":{i},\"name\":\"n{}\",\"x\":{{\"h\":{hour}}}}}", i % 3);
            pipe.append_as("acme", schema(2), &[("view", &raw, None), ("old", &raw, None)]);
        }
        pipe.append("acme", &[("view", "{\"a\":1,\"a\":2}", Some(Code::DuplicateKey))]);
        pipe.append_as(
            "beta",
            schema(if hour == 0 { 1 } else { 2 }),
            &[("view", "{\"n\":1}", None)],
        );
        pipe.clock.advance(HOUR);
    }
    pipe.run(&config);
    let rows: u64 = pipe.reader(&config).inventory().unwrap().iter().map(|file| file.rows).sum();
    assert_eq!(rows, 3 * 402);
}

#[test]
fn where_processes_share_a_log_a_start_removes_what_its_own_process_staged_alone() {
    let mut pipe = Pipe::new();
    let config = config(10);
    pipe.append("acme", &[("view", "{}", None)]);
    let log_id = pipe.log.handle().log_id().to_owned();
    let staging = pipe.lake().join("staging");
    std::fs::create_dir_all(&staging).unwrap();
    let staged = |who: &str| format!("{log_id}.{who}-{log_id}-0-0-1.parquet");
    for who in ["mine", "theirs"] {
        std::fs::write(staging.join(staged(who)), b"half").unwrap();
    }
    let context = SinkContext { shared_as: Some("mine".to_owned()), ..super::context(&pipe) };
    Lake::open(&config, &context, &|store| store).unwrap();
    let left: Vec<_> =
        std::fs::read_dir(&staging).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [staged("theirs").as_str()]);
}

#[test]
fn a_start_removes_what_its_own_log_staged_and_leaves_other_logs_writers_alone() {
    let mut pipe = Pipe::new();
    let config = config(10);
    pipe.append("acme", &[("view", "{}", None)]);
    let own = format!("{}-0-0-1.parquet", pipe.log.handle().log_id());
    let staging = pipe.lake().join("staging");
    std::fs::create_dir_all(&staging).unwrap();
    for name in [own.as_str(), "otherlog-0-0-9.parquet"] {
        std::fs::write(staging.join(name), b"half").unwrap();
    }
    pipe.run(&config);
    let left: Vec<_> =
        std::fs::read_dir(&staging).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["otherlog-0-0-9.parquet"]);
    assert_eq!(pipe.rows(&config).len(), 1);
}
