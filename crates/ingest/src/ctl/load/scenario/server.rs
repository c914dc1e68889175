//! The server of a scenario: its own `ingestd` in a folder of its own, both gone at the end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use http::HeaderValue;
use serde_json::{Map, Value};

use super::Bench;
use crate::ctl::{admin::Admin, client::Target, fault::Fault, load::stats::cpu_seconds_of};

/// A server that is not ready after this long never will be.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than a server takes to flush and end on SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(45);
/// A scenario that is broken off does not wait that long.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than a sink needs for what one phase leaves behind.
pub const SETTLE: Duration = Duration::from_secs(120);

/// How the server of a scenario is to be.
#[derive(Clone, Debug)]
pub struct Setup {
    /// `[budget] bytes`.
    pub budget_bytes: u64,
    /// `[log] segment_bytes`, in MiB.
    pub segment_mib: u64,
    /// More lines of `[log]`.
    pub log: String,
    /// The `[[sink]]` tables; `{folder}` is the scenario's folder.
    pub sinks: String,
    /// The data folder is a file system of this many MiB, in a mount namespace of the server's own.
    pub tmpfs_mib: Option<u64>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            budget_bytes: 384 << 20,
            segment_mib: 64,
            log: String::new(),
            sinks: LAKE.to_owned(),
            tmpfs_mib: None,
        }
    }
}

impl Setup {
    /// What to do where the server did not start.
    fn start_hint(&self) -> &'static str {
        match self.tmpfs_mib {
            Some(_) => "this scenario mounts a file system of its own, which only root may",
            None => "",
        }
    }
}

/// A lake in the scenario's folder.
pub const LAKE: &str = "[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = \"{folder}/lake\"\nflush = { age = \"1s\" }\n";

/// What a tenant may send; nothing: as much as it likes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quota {
    /// Events a second.
    pub events: Option<u64>,
    /// Bytes a second.
    pub bytes: Option<u64>,
}

/// A tenant of the server.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// What it sends as `Authorization`.
    pub authorization: HeaderValue,
}

/// A folder that is removed when dropped.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            crate::ctl::out::remark(&format!("{} is left behind: {e}", self.0.display()));
        }
    }
}

/// A server that runs; dropped, it is stopped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    admin_url: String,
    /// Its `[budget] bytes`.
    pub budget_bytes: u64,
    /// Where to send.
    pub target: Target,
    /// Its admin address.
    pub admin: Admin,
    folder: Folder,
    ctl: PathBuf,
}

impl Server {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// [`Fault::Failed`] with its last words.
    pub async fn start(bench: &Bench<'_>, setup: &Setup) -> Result<Self, Fault> {
        let folder = make_folder(bench)?;
        let data = folder.0.join("data");
        let config = folder.0.join("tidegate.toml");
        make(&data)?;
        let sinks = setup.sinks.replace("{folder}", &folder.0.display().to_string());
        let text = format!(
            "[budget]\nbytes = {}\n[log]\nsegment_bytes = \"{}MiB\"\n{}\n{sinks}",
            setup.budget_bytes, setup.segment_mib, setup.log
        );
        fs::write(&config, text).map_err(|e| Fault::file(&config, &e))?;
        let log = folder.0.join("ingestd.log");
        let output = fs::File::create(&log).map_err(|e| Fault::file(&log, &e))?;
        let mut words = bench.pins.before();
        if let Some(mib) = setup.tmpfs_mib {
            words.extend(in_tmpfs(mib, &data));
        }
        words.push(bench.ingestd.display().to_string());
        let (program, arguments) =
            words.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
        let mut command = Command::new(program);
        // What the caller's environment says of another server is not for this one.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"TIDEGATE_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(arguments)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json"])
            .arg("--config")
            .arg(&config)
            .arg("--data-dir")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(|e| {
                Fault::failed(
                    format!("cannot start {program}: {e}"),
                    "give the server's program with --ingestd PATH",
                )
            })?;
        let mut starting = Starting(Some(child));
        let (public, admin_url) = starting.ready(&log, setup.start_hint()).await?;
        let target = Target::new(&public, None, false)?;
        let admin = Admin::new(Target::new(&admin_url, None, false)?, None);
        let child = starting.0.take().ok_or_else(|| Fault::failed("the server is gone", ""))?;
        let budget_bytes = setup.budget_bytes;
        let ctl = bench.ctl.clone();
        Ok(Self { child, admin_url, budget_bytes, target, admin, folder, ctl })
    }

    /// The scenario's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// The data folder as the server sees it, also where it is in a mount namespace of its own.
    #[must_use]
    pub fn data_as_seen(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        let data = self.folder.0.join("data");
        data.strip_prefix("/").map_or(data.clone(), |inside| root.join(inside))
    }

    /// Adds a tenant.
    ///
    /// # Errors
    /// [`Fault::Failed`] where the server refuses.
    pub async fn tenant(&self, name: &str, quota: Quota) -> Result<Tenant, Fault> {
        let mut body = Map::from_iter([("tenant".to_owned(), Value::from(name))]);
        for (field, value) in
            [("events_per_second", quota.events), ("bytes_per_second", quota.bytes)]
        {
            body.extend(value.map(|n| (field.to_owned(), Value::from(n))));
        }
        let made = self.admin.post("/api/v1/tenants", &Value::Object(body)).await?;
        let key = made.get("key").and_then(Value::as_str).unwrap_or_default();
        let mut authorization = HeaderValue::try_from(format!("Bearer {key}"))
            .map_err(|_| Fault::failed("the server made a key that is no text", ""))?;
        authorization.set_sensitive(true);
        Ok(Tenant { name: name.to_owned(), authorization })
    }

    /// `GET /api/v1/status`.
    ///
    /// # Errors
    /// [`Fault::Failed`] where it cannot be reached.
    pub async fn status(&self) -> Result<Value, Fault> {
        self.admin.get("/api/v1/status").await
    }

    /// Events that the slowest sink has still to write.
    ///
    /// # Errors
    /// As [`Server::status`].
    pub async fn lag(&self) -> Result<u64, Fault> {
        let status = self.status().await?;
        let sinks = status.get("sinks").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(sinks.iter().filter_map(|s| s.get("lag_events")?.as_u64()).max().unwrap_or(0))
    }

    /// Waits until the sinks have written everything; how long that took, `None` where it took
    /// longer than `most`.
    ///
    /// # Errors
    /// As [`Server::status`].
    pub async fn settle(&self, most: Duration) -> Result<Option<Duration>, Fault> {
        let start = Instant::now();
        while self.lag().await? > 0 {
            if most < start.elapsed() {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(Some(start.elapsed()))
    }

    /// The most memory it ever had resident, where the system tells.
    #[must_use]
    pub fn peak_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024)
    }

    /// CPU seconds it has used so far, where the system tells.
    #[must_use]
    pub fn cpu_seconds(&self) -> Option<f64> {
        cpu_seconds_of(&self.child.id().to_string())
    }

    /// `ingestctl audit`, with a journal or without: its document, and whether it found all well.
    ///
    /// # Errors
    /// [`Fault::Failed`] where it could not be carried out.
    pub async fn audit(&self, journal: Option<&Path>) -> Result<(Value, bool), Fault> {
        let mut command = tokio::process::Command::new(&self.ctl);
        command.args(["audit", "--json", "--admin", &self.admin_url]);
        if let Some(journal) = journal {
            command.arg("--journal").arg(journal);
        }
        let done = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
        let done = done.map_err(|e| Fault::file(&self.ctl, &e))?;
        let fault = |why: String| Fault::failed(format!("the audit could not be done: {why}"), "");
        match done.status.code() {
            Some(status @ (0 | 1)) => {
                let document = serde_json::from_slice(&done.stdout);
                Ok((document.map_err(|e| fault(e.to_string()))?, status == 0))
            }
            _ => Err(fault(String::from_utf8_lossy(&done.stderr).trim().to_owned())),
        }
    }

    /// SIGTERM, and how it ended.
    ///
    /// # Errors
    /// [`Fault::Failed`] where it does not end.
    pub async fn stop(mut self) -> Result<Option<i32>, Fault> {
        terminate(&self.child);
        let start = Instant::now();
        while start.elapsed() < STOP_TIMEOUT {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Ok(status.code());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Fault::failed(
            format!("the server did not end within {} s of SIGTERM", STOP_TIMEOUT.as_secs()),
            "",
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A server that is not ready yet; dropped, it is stopped.
struct Starting(Option<Child>);

impl Starting {
    /// The URLs of its public and its admin address, once it says that it is ready.
    async fn ready(&mut self, log: &Path, hint: &str) -> Result<(String, String), Fault> {
        let start = Instant::now();
        loop {
            let said = fs::read_to_string(log).map_err(|e| Fault::file(log, &e))?;
            if let Some(addresses) = said.lines().find_map(addresses) {
                return Ok(addresses);
            }
            let ended = self.0.as_mut().is_none_or(|c| !matches!(c.try_wait(), Ok(None)));
            if ended || START_TIMEOUT < start.elapsed() {
                let last: Vec<_> = said.lines().rev().take(8).collect();
                let last: Vec<_> = last.into_iter().rev().collect();
                let what = if ended { "ended at its start" } else { "did not become ready" };
                return Err(Fault::failed(
                    format!("the server {what}:\n{}", last.join("\n")),
                    hint,
                ));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

fn addresses(line: &str) -> Option<(String, String)> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let fields = entry.get("fields")?;
    if fields.get("message")? != "ready" {
        return None;
    }
    let url = |name| Some(format!("http://{}", fields.get(name)?.as_str()?));
    Some((url("listen")?, url("admin")?))
}

fn terminate(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    // It may have ended by itself: then there is nothing to tell it.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
}

/// SIGTERM, and a while later SIGKILL.
fn end(child: &mut Child) {
    if let Ok(Some(_)) = child.try_wait() {
        return;
    }
    terminate(child);
    let start = Instant::now();
    while start.elapsed() < DROP_TIMEOUT {
        if let Ok(Some(_)) = child.try_wait() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // What cannot be killed has ended.
    let _ = child.kill();
    let _ = child.wait();
}

fn make(folder: &Path) -> Result<(), Fault> {
    fs::create_dir_all(folder).map_err(|e| Fault::file(folder, &e))
}

fn make_folder(bench: &Bench<'_>) -> Result<Folder, Fault> {
    let below = bench.data_dir.clone().unwrap_or_else(std::env::temp_dir);
    let name = format!("tidegate-load-{:016x}", rand::random::<u64>());
    make(&below)?;
    let below = fs::canonicalize(&below).map_err(|e| Fault::file(&below, &e))?;
    let folder = below.join(name);
    fs::create_dir(&folder).map_err(|e| Fault::file(&folder, &e))?;
    Ok(Folder(folder))
}

/// The words that run what follows with a small file system at `place` that nobody else sees.
fn in_tmpfs(mib: u64, place: &Path) -> Vec<String> {
    let script =
        "mount -t tmpfs -o \"size=$1,mode=0700\" tidegate \"$2\" && shift 2 && exec \"$@\"";
    let size = format!("{mib}m");
    let place = place.display().to_string();
    ["unshare", "--mount", "sh", "-c", script, "sh", &size, &place].map(str::to_owned).to_vec()
}
