//! The desired state on disk: one redb file, each change a transaction that is durable when it returns.

use std::path::Path;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use telemetry::check::Errors;

use crate::flow_json::FlowSpec;
use crate::model::{Desired, Dpid, Network};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const NETWORKS: TableDefinition<'_, &str, &str> = TableDefinition::new("networks");
const FLOWS: TableDefinition<'_, (u64, &str), &str> = TableDefinition::new("flows");

const FILE: &str = "controller.redb";
const VERSION_KEY: &str = "version";
/// Version of the tables and of the JSON in them.
const VERSION: u64 = 1;

/// The desired state on disk.
pub struct Store {
    database: Database,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database or the disk below it.
    #[error("cannot {attempt} the controller's state in {FILE}")]
    Database {
        /// What was attempted.
        attempt: &'static str,
        /// What the database said.
        #[source]
        source: Box<redb::Error>,
    },
    /// Written by a later release.
    #[error(
        "{FILE} has version {found}, this program knows version {VERSION}; use the release that wrote it"
    )]
    Version {
        /// The version in the file.
        found: u64,
    },
    /// Something in it is not what this program writes.
    #[error("{FILE} has {what} that this program did not write: {detail}; restore the file from a backup")]
    Content {
        /// What it is.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
}

fn failed<E: Into<redb::Error>>(attempt: &'static str) -> impl FnOnce(E) -> StoreError {
    move |error| StoreError::Database { attempt, source: Box::new(error.into()) }
}

impl Store {
    /// Opens the store in `directory`, new if there is none, and reads all of it.
    ///
    /// # Errors
    /// The file cannot be read, is of a later version, or holds what this program did not write.
    pub fn open(directory: &Path) -> Result<(Store, Desired), StoreError> {
        let database = Database::create(directory.join(FILE)).map_err(failed("open"))?;
        let store = Store { database };
        store.change("prepare", |transaction| {
            let mut meta = transaction.open_table(META)?;
            if meta.get(VERSION_KEY)?.is_none() {
                meta.insert(VERSION_KEY, VERSION)?;
            }
            transaction.open_table(NETWORKS)?;
            transaction.open_table(FLOWS).map(drop).map_err(Into::into)
        })?;
        let desired = store.read()?;
        Ok((store, desired))
    }

    fn read(&self) -> Result<Desired, StoreError> {
        let (mut networks, mut flows) = (Vec::new(), Vec::new());
        let mut version = 0;
        let mut read = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_read()?;
            version = transaction.open_table(META)?.get(VERSION_KEY)?.map_or(0, |version| version.value());
            for row in transaction.open_table(NETWORKS)?.iter()? {
                let (name, text) = row?;
                networks.push((name.value().to_owned(), text.value().to_owned()));
            }
            for row in transaction.open_table(FLOWS)?.iter()? {
                let (key, text) = row?;
                let (dpid, id) = key.value();
                flows.push(((Dpid(dpid), id.to_owned()), text.value().to_owned()));
            }
            Ok(())
        };
        read().map_err(failed("read"))?;
        if version != VERSION {
            return Err(StoreError::Version { found: version });
        }
        let mut desired = Desired::default();
        for (name, text) in networks {
            let network = parse(&text, Network::from_json, || format!("network {name}"))?;
            desired.networks.insert(name, network);
        }
        for (key, text) in flows {
            let flow = parse(&text, FlowSpec::from_json, || format!("flow {} of switch {}", key.1, key.0))?;
            desired.flows.insert(key, flow);
        }
        Ok(desired)
    }

    fn change(
        &self,
        attempt: &'static str,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let run = || {
            let transaction = self.database.begin_write()?;
            change(&transaction)?;
            transaction.commit()?;
            Ok(())
        };
        run().map_err(failed::<redb::Error>(attempt))
    }

    /// Stores or removes a network. Durable on return.
    ///
    /// # Errors
    /// The database or the disk; then nothing is changed.
    pub fn set_network(&self, name: &str, network: Option<&Network>) -> Result<(), StoreError> {
        let text = network.map(|network| serde_json::json!(network).to_string());
        self.change("write", |transaction| {
            let mut table = transaction.open_table(NETWORKS)?;
            match text.as_deref() {
                Some(text) => table.insert(name, text)?,
                None => table.remove(name)?,
            };
            Ok(())
        })
    }

    /// Stores or removes a static flow. Durable on return.
    ///
    /// # Errors
    /// The database or the disk; then nothing is changed.
    pub fn set_flow(&self, dpid: Dpid, id: &str, flow: Option<&FlowSpec>) -> Result<(), StoreError> {
        let text = flow.map(|flow| flow.to_json().to_string());
        self.change("write", |transaction| {
            let mut table = transaction.open_table(FLOWS)?;
            match text.as_deref() {
                Some(text) => table.insert((dpid.0, id), text)?,
                None => table.remove((dpid.0, id))?,
            };
            Ok(())
        })
    }
}

fn parse<T>(
    text: &str,
    read: impl FnOnce(serde_json::Value, &mut Errors) -> Option<T>,
    what: impl Fn() -> String,
) -> Result<T, StoreError> {
    let content = |detail: String| StoreError::Content { what: what(), detail };
    let value = serde_json::from_str(text).map_err(|error| content(error.to_string()))?;
    let mut errors = Errors::new();
    read(value, &mut errors)
        .ok_or_else(|| content(errors.list().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn network(vlan: u16) -> Network {
        let value = json!({"vlan": vlan, "ports": [{"dpid": 1, "port": "p1", "mode": "trunk"}]});
        Network::from_json(value, &mut Errors::new()).unwrap()
    }

    fn flow(priority: u16) -> FlowSpec {
        let value = json!({"priority": priority, "match": {"in_port": 1}, "actions": [{"output": 2}]});
        FlowSpec::from_json(value, &mut Errors::new()).unwrap()
    }

    #[test]
    fn what_was_stored_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let (store, desired) = Store::open(directory.path()).unwrap();
        assert_eq!(desired, Desired::default());
        store.set_network("red", Some(&network(10))).unwrap();
        store.set_network("red", Some(&network(11))).unwrap();
        store.set_network("blue", Some(&network(20))).unwrap();
        store.set_network("blue", None).unwrap();
        store.set_flow(Dpid(u64::MAX), "f", Some(&flow(7))).unwrap();
        store.set_flow(Dpid(1), "f", Some(&flow(8))).unwrap();
        store.set_flow(Dpid(1), "f", None).unwrap();
        drop(store);
        let (_, desired) = Store::open(directory.path()).unwrap();
        let mut expected = Desired::default();
        expected.networks.insert("red".into(), network(11));
        expected.flows.insert((Dpid(u64::MAX), "f".into()), flow(7));
        assert_eq!(desired, expected);
    }

    #[test]
    fn a_store_of_a_later_version_or_of_strange_content_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(directory.path()).unwrap();
        let put = |version: u64, text: &'static str| {
            let change = |t: &redb::WriteTransaction| {
                t.open_table(META)?.insert(VERSION_KEY, version)?;
                t.open_table(NETWORKS)?.insert("red", text)?;
                Ok(())
            };
            store.change("write", change).unwrap();
            store.read().unwrap_err()
        };
        assert!(matches!(put(2, "{}"), StoreError::Version { found: 2 }));
        let error = put(1, "{\"vlan\": 5000, \"ports\": []}");
        assert!(error.to_string().contains("network red"), "{error}");
    }
}
