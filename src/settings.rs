//! Settings of a daemon: each may be a flag or a key of the TOML file given by `--config`; the flag wins.
//!
//! Both roads end in the same text and the same parser, and everything that is wrong is reported together.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use telemetry::check::Errors;
use telemetry::tls::{Tls, TlsFiles};

use crate::output::BadInput;

/// Longest time a worker may poll without work: beyond that it would only burn its processor.
const SPIN_US_MAX: u32 = 1_000_000;
/// What pays for itself as soon as requests come one by one.
const SPIN_US_DEFAULT: u32 = 50;

/// The flags of a daemon whose work is done by worker threads.
#[derive(Args)]
pub struct WorkerFlags {
    /// Where the sockets stand [default: /run/sluice]
    #[arg(long, value_name = "DIR", env = "SLUICE_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// Serve Prometheus metrics at this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<String>,
    /// Processors for the workers, one worker each, such as 0,1 [default: one worker, not pinned]
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
    /// How long an idle worker polls before it sleeps, in microseconds [default: 50]
    #[arg(long, value_name = "US")]
    pub spin_us: Option<String>,
}

/// Reads settings one by one and remembers what was wrong with them.
pub struct Settings {
    file: toml::Table,
    file_name: String,
    /// Keys that were asked for.
    known: Vec<String>,
    errors: Errors,
}

impl Settings {
    /// Settings from the TOML file `config`, if one is given, and from flags alone otherwise.
    pub fn read(config: Option<&Path>) -> Settings {
        let mut settings = Settings {
            file: toml::Table::new(),
            file_name: String::new(),
            known: Vec::new(),
            errors: Errors::new(),
        };
        let Some(path) = config else { return settings };
        settings.file_name = path.display().to_string();
        let parsed = std::fs::read_to_string(path)
            .map_err(|error| error.to_string())
            .and_then(|text| text.parse::<toml::Table>().map_err(|error| error.to_string()));
        match parsed {
            Ok(table) => settings.file = table,
            Err(detail) => {
                settings.refuse("--config", &path.display().to_string(), detail, "give a readable TOML file")
            }
        }
        settings
    }

    /// Notes that `value` of `field` is wrong.
    pub fn refuse(&mut self, field: &str, value: &str, detail: impl Into<String>, remedy: &str) {
        self.errors.add(field, value, detail, remedy);
    }

    /// The setting `key` (its flag is `--key` with dashes), parsed; `None` when absent or wrong.
    pub fn get<T>(
        &mut self,
        key: &str,
        flag: Option<&str>,
        remedy: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.known.push(key.to_string());
        let from_file = self.file.remove(key);
        let (field, text) = match (flag, from_file) {
            (Some(flag), _) => (format!("--{}", key.replace('_', "-")), flag.to_string()),
            (None, Some(value)) => {
                let field = format!("{}: {key}", self.file_name);
                match plain_text(&value) {
                    Some(text) => (field, text),
                    None => {
                        let detail = format!("is a {}, not a plain value", value.type_str());
                        self.refuse(&field, &value.to_string(), detail, remedy);
                        return None;
                    }
                }
            }
            (None, None) => return None,
        };
        match parse(&text) {
            Ok(value) => Some(value),
            Err(detail) => {
                self.refuse(&field, &text, detail, remedy);
                None
            }
        }
    }

    /// A setting whose type knows how to parse itself.
    pub fn parsed<T: FromStr>(&mut self, key: &str, flag: Option<&str>, remedy: &str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        self.get(key, flag, remedy, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    /// A setting that is a list: `a,b` as a flag, `["a", "b"]` or `"a,b"` in the file. Empty when absent.
    pub fn list<T>(
        &mut self,
        key: &str,
        flag: Option<&str>,
        remedy: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        self.get(key, flag, remedy, |text| {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(parse).collect()
        })
        .unwrap_or_default()
    }

    /// A setting that is a path. One that is not absolute counts from where the daemon is started, once for all.
    pub fn path(&mut self, key: &str, flag: Option<&Path>) -> Option<PathBuf> {
        let flag = flag.map(|path| path.to_string_lossy().into_owned());
        self.get(key, flag.as_deref(), "give a path", |text| {
            std::path::absolute(text).map_err(|_| "is empty".to_string())
        })
    }

    /// The setting `run_dir`: where the sockets stand.
    pub fn run_dir(&mut self, flag: Option<&Path>) -> PathBuf {
        self.path("run_dir", flag).unwrap_or_else(|| PathBuf::from("/run/sluice"))
    }

    /// The setting `metrics`: where Prometheus scrapes.
    pub fn metrics(&mut self, flag: Option<&str>) -> Option<SocketAddr> {
        self.parsed("metrics", flag, "give address and port, such as 127.0.0.1:9101")
    }

    /// The setting `spin_us`: how long a worker without work polls before it sleeps.
    pub fn spin_us(&mut self, flag: Option<&str>) -> u32 {
        let spin_us =
            self.get("spin_us", flag, "give microseconds, 0 to 1000000", |text| match text.parse() {
                Ok(spin_us) if spin_us <= SPIN_US_MAX => Ok(spin_us),
                _ => Err("is not such a time".to_string()),
            });
        spin_us.unwrap_or(SPIN_US_DEFAULT)
    }

    /// The setting `cores`: processors of this host, each at most once.
    pub fn cores(&mut self, flag: Option<&str>) -> Vec<usize> {
        let remedy = "give processors of this host, separated by commas";
        self.get("cores", flag, remedy, |text| {
            let mut cores = Vec::new();
            for item in text.split(',').map(str::trim) {
                match item.parse::<usize>() {
                    Ok(core) if !Path::new(&format!("/sys/devices/system/cpu/cpu{core}")).exists() => {
                        return Err(format!("names processor {core}, which this host has not"));
                    }
                    Ok(core) if cores.contains(&core) => return Err(format!("names processor {core} twice")),
                    Ok(core) => cores.push(core),
                    Err(_) => return Err(format!("has the part `{item}`, which is no number")),
                }
            }
            Ok(cores)
        })
        .unwrap_or_default()
    }

    /// Ends the reading: keys nobody asked for are errors too.
    ///
    /// # Errors
    /// All that was wrong, as one text of a line each.
    pub fn finish(mut self) -> anyhow::Result<()> {
        let remedy = format!("the keys are {}", self.known.join(", "));
        for (key, value) in std::mem::take(&mut self.file) {
            let field = format!("{}: {key}", self.file_name);
            self.refuse(&field, &value.to_string(), "is not a known key", &remedy);
        }
        self.errors
            .into_result("the configuration is not usable", ())
            .map_err(|problem| BadInput(problem.to_string()).into())
    }
}

/// The files for TLS, as far as they are given.
pub struct TlsSettings {
    /// The private key.
    pub key: Option<PathBuf>,
    /// The certificate.
    pub cert: Option<PathBuf>,
    /// The authorities that sign the other end.
    pub ca: Option<PathBuf>,
}

impl TlsSettings {
    /// Reads the files when some address needs them or any of them is given: then all three have to be.
    pub fn load(self, settings: &mut Settings, needs: Option<String>) -> Option<Tls> {
        let given = [("tls_key", &self.key), ("tls_cert", &self.cert), ("tls_ca", &self.ca)];
        if needs.is_none() && given.iter().all(|(_, file)| file.is_none()) {
            return None;
        }
        let reason = needs.unwrap_or_else(|| "the other files for TLS".to_string());
        for (key, _) in given.iter().filter(|(_, file)| file.is_none()) {
            settings.refuse(key, "", format!("is missing, and {reason} needs it"), "give a PEM file");
        }
        let files = TlsFiles { key: self.key?, cert: self.cert?, ca: self.ca? };
        match Tls::load(&files) {
            Ok(tls) => Some(tls),
            Err(error) => {
                settings.refuse("tls", "", error.to_string(), "give PEM files that belong together");
                None
            }
        }
    }
}

/// The text a flag would have had; `None` for values that no flag can express.
fn plain_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(plain_text).collect();
            items.map(|items| items.join(","))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(text: &str) -> (tempfile::NamedTempFile, Settings) {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("written");
        let settings = Settings::read(Some(file.path()));
        (file, settings)
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let (_file, mut settings) = file("spin_us = 20\nqueues = 3\ncores = [0, 1]\n");
        assert_eq!(settings.parsed::<u32>("spin_us", Some("50"), ""), Some(50));
        assert_eq!(settings.parsed::<u32>("queues", None, ""), Some(3));
        assert_eq!(
            settings.list("cores", None, "", |t| t.parse::<usize>().map_err(|e| e.to_string())),
            [0, 1]
        );
        settings.finish().expect("nothing is wrong");
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let (_file, mut settings) = file("spin_us = \"soon\"\nspinn = 1\ndeep = { a = 1 }\n");
        assert_eq!(settings.parsed::<u32>("spin_us", None, "give microseconds"), None);
        assert_eq!(settings.parsed::<u32>("deep", None, "give a number"), None);
        assert_eq!(settings.parsed::<u16>("port", Some("70000"), "give a port"), None);
        let text = settings.finish().expect_err("four things are wrong").to_string();
        for part in [
            "spin_us `soon`",
            "give microseconds",
            "deep",
            "--port `70000`",
            "spinn `1`: is not a known key; the keys are spin_us, deep, port",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_one_of_the_errors() {
        let mut settings = Settings::read(Some(Path::new("/nonexistent/sluice.toml")));
        assert_eq!(settings.parsed::<u32>("spin_us", Some("x"), ""), None);
        let text = settings.finish().expect_err("two things are wrong").to_string();
        assert!(text.contains("/nonexistent/sluice.toml") && text.contains("--spin-us"), "{text}");
    }
}
