//! Starts the real `ingestd` in a folder of its own and speaks HTTP to it over real sockets.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;

/// Far beyond what any step takes: a step that needs longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub public: SocketAddr,
    pub admin: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingestd"));
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json"]);
    // Not on ports that others may want.
    command.env("TIDEGATE_EDGE__ALSO_LISTEN", "[]");
    command.args(arguments).envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Server {
    /// `ingestd --dev` with its data in `dir`.
    pub fn dev(dir: &Path) -> Self {
        Self::start(&["--dev", "--data-dir", &dir.display().to_string()], &[])
    }

    /// With a configuration file.
    pub fn configured(dir: &Path, config: &str) -> Self {
        let path = dir.join("tidegate.toml");
        std::fs::write(&path, config).unwrap();
        let (path, data) = (path.display().to_string(), dir.join("data").display().to_string());
        Self::start(&["--config", &path, "--data-dir", &data], &[])
    }

    /// One role, with a configuration file and a data folder of its own below `dir`; `public` is then
    /// where it listens for the role before.
    pub fn role(dir: &Path, role: &str, config: &str) -> Self {
        let own = dir.join(role);
        std::fs::create_dir_all(&own).unwrap();
        let path = own.join("tidegate.toml");
        let tenants = dir.join("tenants").display().to_string();
        std::fs::write(&path, format!("tenants_dir = {tenants:?}\n{config}")).unwrap();
        let (path, data) = (path.display().to_string(), own.join("data").display().to_string());
        let arguments =
            ["--role", role, "--config", &path, "--data-dir", &data, "--hop", "127.0.0.1:0"];
        Self::start(&arguments, &[])
    }

    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = command(arguments, environment).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let (public, admin) = loop {
            let Some(Ok(line)) = lines.next() else {
                panic!("ingestd ended before it was ready:\n{}", log.lock().unwrap());
            };
            let entry: Value = serde_json::from_str(&line).unwrap_or_default();
            log.lock().unwrap().push_str(&(line + "\n"));
            let address = |name: &str| entry["fields"][name].as_str().map(|a| a.parse().unwrap());
            if entry["fields"]["message"] == "ready" {
                break (address("listen").unwrap(), address("admin").unwrap());
            }
        };
        let keeping = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                keeping.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        Self { child, public, admin, log }
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, such as the one that pauses it.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }

    pub fn post(&self, path: &str, key: &str, content_type: &str, body: &[u8]) -> Answer {
        let authorization = format!("Bearer {key}");
        let headers = [("authorization", &*authorization), ("content-type", content_type)];
        request(self.public, "POST", path, &headers, body)
    }

    pub fn admin_get(&self, path: &str) -> Answer {
        request(self.admin, "GET", path, &[], b"")
    }

    pub fn admin_post(&self, path: &str, body: &Value) -> Answer {
        let headers = [("content-type", "application/json")];
        request(self.admin, "POST", path, &headers, body.to_string().as_bytes())
    }

    /// Waits until the lake has made everything visible.
    pub fn settle(&self) {
        wait_for("the lake to catch up", || {
            let status = self.admin_get("/api/v1/status").json();
            status["sinks"].as_array().unwrap().iter().all(|s| s["lag_events"] == 0)
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- ingestd said:\n{}", self.log());
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs `ingestd` that is expected to refuse; its exit status and what it said.
pub fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(arguments, &[]).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Waits until `holds`; panics naming `what` when it never does.
#[track_caller]
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > PATIENCE {
            panic!("waited in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One request on a connection of its own.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    answer(&bytes)
}

fn answer(bytes: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(body) } else { body.to_owned() };
    Answer { status, body }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

/// Every file below `dir` whose name ends in `suffix`.
pub fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, suffix));
        } else if path.display().to_string().ends_with(suffix) {
            found.push(path);
        }
    }
    found.sort();
    found
}
