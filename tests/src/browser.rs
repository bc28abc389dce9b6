//! A headless Chromium that a test drives by the DevTools protocol, over a pair of pipes: messages are JSON with a zero
//! byte behind each.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use serde_json::{Value, json};
use xtask::lab::netns::Namespace;
use xtask::lab::process::{Lifetime, Process};
use xtask::paths::find_program;

const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page.
pub struct Browser {
    process: Process,
    requests: File,
    answers: Receiver<Value>,
    session: Option<String>,
    next: u64,
    _directory: tempfile::TempDir,
}

impl Browser {
    /// Starts it in a namespace, with an empty page.
    ///
    /// # Panics
    /// Without the Debian package chromium, or when it does not start.
    pub fn start(namespace: &Namespace) -> Browser {
        let remedy = "install the Debian package: apt-get install chromium";
        assert!(find_program("chromium").is_some(), "chromium is not there; {remedy}");
        let directory = tempfile::Builder::new().prefix("sluice-browser-").tempdir().unwrap();
        let pipe = |name: &str| {
            let path = directory.path().join(name);
            nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
            path
        };
        let (requests, answers) = (pipe("requests"), pipe("answers"));
        let mut command: Command = namespace.command("sh");
        command.args([
            "-c",
            "requests=$1 answers=$2; shift 2; exec \"$@\" 3<\"$requests\" 4>\"$answers\"",
            "sh",
        ]);
        command.arg(&requests).arg(&answers).args([
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", directory.path().join("profile").display()));
        command.arg("about:blank");
        let log = directory.path().join("chromium.log");
        let process = Process::start("chromium", &command, &log, Lifetime::Ours).unwrap();
        // Opening a pipe waits for the other end.
        let requests = File::options().write(true).open(requests).unwrap();
        let reader = BufReader::new(File::open(answers).unwrap());
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for message in reader.split(0) {
                let Ok(value) = message.map_err(drop).and_then(|m| serde_json::from_slice(&m).map_err(drop))
                else {
                    return;
                };
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let mut browser =
            Browser { process, requests, answers: receiver, session: None, next: 1, _directory: directory };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        browser
    }

    fn ask(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        let id = self.next;
        self.next += 1;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.requests.write_all(&bytes).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let answer = self.answers.recv_timeout(left);
            let answer =
                answer.unwrap_or_else(|_| panic!("no answer to {method}: {}", self.process.output()));
            // Anything else is an event that nobody asked for.
            if answer["id"] == json!(id) {
                return if answer["error"].is_null() { Ok(answer["result"].clone()) } else { Err(answer) };
            }
        }
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.ask(method, params).unwrap_or_else(|answer| panic!("{method}: {answer:#}"))
    }

    /// The value of an expression, or what the browser says against it.
    fn value(&mut self, expression: &str) -> Result<Value, Value> {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.ask("Runtime.evaluate", params)?;
        if result["exceptionDetails"].is_null() { Ok(result["result"]["value"].clone()) } else { Err(result) }
    }

    /// Goes to an address.
    ///
    /// # Panics
    /// The browser does not answer.
    pub fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
    }

    /// The value of a JavaScript expression in the page.
    ///
    /// # Panics
    /// The expression throws.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        self.value(expression).unwrap_or_else(|answer| panic!("{expression}: {answer:#}"))
    }

    /// Waits until an expression is true; while the page is loaded it may throw.
    ///
    /// # Panics
    /// It does not become true in time.
    #[track_caller]
    pub fn until(&mut self, expression: &str) {
        let holds = crate::holds_within(PATIENCE, || self.value(expression) == Ok(json!(true)));
        assert!(holds, "{expression}: {}", self.evaluate("document.body.innerText"));
    }

    /// Makes the window as small as a telephone's, or as large as asked.
    ///
    /// # Panics
    /// The browser does not answer.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }
}
