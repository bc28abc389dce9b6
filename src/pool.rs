//! `sluice pool`: the tiered pools of the storage daemon.

use std::path::Path;

use clap::Subcommand;
use hyper::Method;
use serde_json::{Map, Value, json};
use telemetry::check::about_size;

use crate::client::{self, Collection, RunDir};
use crate::job::Wait;
use crate::output::{self, Look, bytes};

const POOLS: Collection = Collection { daemon: "blk", path: "/v1/pools" };

/// Arguments of `sluice pool`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a pool of fast and large devices
    Create(Create),
    /// List the pools
    List {
        #[command(flatten)]
        look: Look,
    },
    /// Show one pool: its devices, space, state and volumes
    Show {
        /// Name of the pool
        name: String,
        #[command(flatten)]
        look: Look,
    },
    /// Open a pool that failed or became read-only, once what was missing is back
    ///
    /// A pool that failed is also tried again by itself. Guests of a read-only one are disconnected for a moment.
    Open {
        /// Name of the pool
        name: String,
        /// Read-only, without its hot tier, although data were only there
        #[arg(long)]
        degraded: bool,
        #[command(flatten)]
        daemon: RunDir,
    },
    /// Make a pool larger while it is at work: more devices, or more of those it has
    Extend(Extend),
    /// Check the metadata of a pool on its devices; guests go on meanwhile. Exit code 1 if something is wrong
    Check {
        /// Name of the pool
        name: String,
        #[command(flatten)]
        look: Look,
    },
    /// Set how much the volumes of a tenant may write together: more fail
    Quota {
        /// Name of the pool
        name: String,
        /// Name of the tenant
        tenant: String,
        /// Bytes, such as 1TiB, or none
        size: String,
        #[command(flatten)]
        daemon: RunDir,
    },
    /// Write everything back that is only on the fast devices; guests go on meanwhile
    ///
    /// It ends when all that was only there at the beginning has been written back, whatever guests write meanwhile.
    Drain {
        /// Name of the pool
        name: String,
        /// Drain the hot tier
        #[arg(long, required = true)]
        hot: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Forget a pool without volumes; its devices are left alone
    Delete {
        /// Name of the pool
        name: String,
        #[command(flatten)]
        daemon: RunDir,
    },
}

#[derive(clap::Args)]
struct Extend {
    /// Name of the pool
    name: String,
    /// A fast device that joins, or one of the pool with its new size; may be given several times
    #[arg(long, value_name = "PATH[:SIZE]")]
    hot: Vec<String>,
    /// A large device that joins, or one of the pool with its new size; may be given several times
    #[arg(long, value_name = "PATH[:SIZE]")]
    cold: Vec<String>,
    /// Overwrite what is on devices that join
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    look: Look,
}

/// Puts devices into the body of a request.
fn put_devices(body: &mut Map<String, Value>, tiers: [(&str, &Vec<String>); 2], force: bool) {
    for (tier, devices) in tiers {
        // Paths count from where the command is given; the size behind them is no part of a directory's name.
        let absolute = |text: &String| {
            std::path::absolute(Path::new(text))
                .map_or_else(|_| text.clone(), |path| path.display().to_string())
        };
        if !devices.is_empty() {
            body.insert(tier.to_string(), devices.iter().map(absolute).collect());
        }
    }
    if force {
        body.insert("force".to_string(), json!(true));
    }
}

#[derive(clap::Args)]
struct Create {
    /// Name of the pool
    name: String,
    /// A fast file or device, such as /fast/hot.img:2GiB; may be given several times
    #[arg(long, value_name = "PATH[:SIZE]", required = true)]
    hot: Vec<String>,
    /// A large file or device, such as /big/cold.img:20GiB; may be given several times
    #[arg(long, value_name = "PATH[:SIZE]", required = true)]
    cold: Vec<String>,
    /// Most bytes a second that moves between the tiers may take, such as 200MiB [default: no limit]
    #[arg(long, value_name = "SIZE")]
    migration_limit: Option<String>,
    /// Overwrite what is on the devices
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    daemon: RunDir,
}

impl Create {
    fn body(&self) -> Value {
        let mut body = Map::new();
        body.insert("name".to_string(), json!(self.name));
        put_devices(&mut body, [("hot", &self.hot), ("cold", &self.cold)], self.force);
        client::put_texts(&mut body, [("migration_bytes_per_s", &self.migration_limit)]);
        Value::Object(body)
    }
}

fn capacity(pool: &Value) -> String {
    let of = |key: &str| bytes(&pool["usage"][key]);
    format!("{} for data, {} of them hot at a time", of("cold_bytes"), of("hot_bytes"))
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Create(create) => {
            let made = POOLS.make(&create.daemon, &create.body())?;
            output::line(format_args!("{} has {}", create.name, capacity(&made)));
            warn(&made);
        }
        Verb::List { look } => look.output.print(&POOLS.list(&look.daemon)?, list),
        Verb::Show { name, look } => look.output.print(&POOLS.show(&look.daemon, &name)?, show),
        Verb::Open { name, degraded, daemon } => {
            let pool = POOLS.act(&daemon, &name, "open", Some(&json!({ "degraded": degraded })))?;
            output::line(format_args!("{name} is {}", state(&pool)));
            warn(&pool);
        }
        Verb::Extend(extend) => {
            let mut body = Map::new();
            put_devices(&mut body, [("hot", &extend.hot), ("cold", &extend.cold)], extend.force);
            let look = &extend.look;
            let pool = POOLS.act(&look.daemon, &extend.name, "devices", Some(&Value::Object(body)))?;
            look.output.print(&pool, |pool| {
                output::line(format_args!("{} has {}", extend.name, capacity(pool)));
                warn(pool);
            });
        }
        Verb::Check { name, look } => {
            let checked = POOLS.act(&look.daemon, &name, "check", None)?;
            look.output.print(&checked, check);
            let findings = checked["findings"].as_array().map_or(0, Vec::len);
            if findings > 0 {
                anyhow::bail!("the pool `{name}`: {findings} findings");
            }
        }
        Verb::Quota { name, tenant, size, daemon } => {
            let below = client::path("tenants", &tenant);
            POOLS.below(&daemon, Method::PUT, &name, &below, Some(&json!({ "quota": size })))?;
            output::line(format_args!("{tenant} may write {size} in {name}"));
        }
        Verb::Drain { name, hot: _, wait } => {
            wait.follow(&POOLS.act(wait.daemon(), &name, "drain", None)?)?;
        }
        Verb::Delete { name, daemon } => {
            POOLS.one(&daemon, Method::DELETE, &name, None)?;
            output::line(format_args!("{name} is forgotten; its devices are left alone"));
        }
    }
    Ok(())
}

/// Shows what to look after.
fn warn(pool: &Value) {
    for warning in pool["warnings"].as_array().into_iter().flatten() {
        output::warning(output::text(warning));
    }
}

fn check(checked: &Value) {
    for finding in checked["findings"].as_array().into_iter().flatten() {
        output::line(output::text(finding));
    }
    let of = |key: &str| bytes(&checked[key]);
    let (volumes, records) = (output::text(&checked["volumes"]), output::text(&checked["journal_records"]));
    let (mapped, used, hot) = (of("mapped_bytes"), of("used_bytes"), of("hot_bytes"));
    output::line(format_args!(
        "checked {volumes} volumes, {mapped} mapped to {used}, {hot} hot, {records} journal records"
    ));
}

fn state(pool: &Value) -> String {
    match &pool["state"] {
        Value::Object(state) => state.keys().next().cloned().unwrap_or_default().replace('_', "-"),
        state => output::text(state),
    }
}

fn list(pools: &Value) {
    let rows = pools.as_array().into_iter().flatten().map(|pool| {
        let usage = &pool["usage"];
        let of = |free: &str, all: &str| match (usage[free].as_u64(), usage[all].as_u64()) {
            (Some(free), Some(all)) => format!("{} of {}", about_size(all - free), about_size(all)),
            _ => String::new(),
        };
        [
            output::text(&pool["name"]),
            state(pool),
            of("cold_free_bytes", "cold_bytes"),
            of("hot_free_bytes", "hot_bytes"),
            bytes(&usage["dirty_bytes"]),
            pool["volumes"].as_array().map_or(0, Vec::len).to_string(),
        ]
    });
    output::table(["NAME", "STATE", "USED", "HOT", "DIRTY", "VOLUMES"], rows);
}

/// `v0 65536..131072`
fn range(lost: &Value) -> String {
    let (offset, bytes) =
        (lost["offset"].as_u64().unwrap_or_default(), lost["bytes"].as_u64().unwrap_or_default());
    format!("{} {offset}..{}", output::text(&lost["volume"]), offset + bytes)
}

/// A list as far as it can be read at a glance; `-o json` has all of it.
fn few(list: &Value, show: impl Fn(&Value) -> String) -> String {
    const SHOWN: usize = 8;
    let items = list.as_array().map_or(&[][..], Vec::as_slice);
    let shown = items.iter().take(SHOWN).map(show).collect::<Vec<_>>().join(", ");
    match items.len() {
        ..=SHOWN => shown,
        all => format!("{all}: {shown} and {} more", all - SHOWN),
    }
}

fn show(pool: &Value) {
    let mut rows = vec![["name".to_string(), output::text(&pool["name"])]];
    rows.push(["uuid".to_string(), output::text(&pool["uuid"])]);
    rows.push(["state".to_string(), state(pool)]);
    if let Some(reason) = pool["state"].as_object().and_then(|state| state.values().next()) {
        rows.push(["reason".to_string(), output::text(&reason["reason"])]);
    }
    for device in pool["devices"].as_array().into_iter().flatten() {
        let text = format!("{} {}", output::text(&device["path"]), bytes(&device["size_bytes"]));
        rows.push([format!("{} device", output::text(&device["tier"])), text]);
    }
    for (key, value) in pool["usage"].as_object().into_iter().flatten() {
        let shown = match key.as_str() {
            "lost" => few(value, range),
            "unnamed" => few(value, output::text),
            key if key.ends_with("_bytes") => bytes(value),
            _ => output::text(value),
        };
        if !shown.is_empty() {
            rows.push([key.trim_end_matches("_bytes").replace('_', " "), shown]);
        }
    }
    rows.push(["volumes".to_string(), few(&pool["volumes"], output::text)]);
    output::table(["", ""], rows);
    warn(pool);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_show_how_many_and_the_first() {
        let names = |count: usize| (0..count).map(|at| format!("c{at}")).collect::<Value>();
        assert_eq!(few(&names(0), output::text), "");
        assert_eq!(few(&names(8), output::text), "c0, c1, c2, c3, c4, c5, c6, c7");
        assert_eq!(few(&names(1000), output::text), "1000: c0, c1, c2, c3, c4, c5, c6, c7 and 992 more");
        let lost = serde_json::json!([{"volume": "v0", "offset": 4096, "bytes": 8192}]);
        assert_eq!(few(&lost, range), "v0 4096..12288");
    }
}
