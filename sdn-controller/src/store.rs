//! The desired state on disk: one redb file, each change a transaction that is durable when it returns.

use std::path::Path;

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
};
use serde_json::{Value, json};
use telemetry::check::Errors;

use crate::model::{Desired, Dpid, Item, Kind, Subject};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Kind and name to number and JSON.
const OBJECTS: TableDefinition<'_, (&str, &str), (u32, &str)> = TableDefinition::new("objects");
/// Sequence number to JSON.
const AUDIT: TableDefinition<'_, u64, &str> = TableDefinition::new("audit");
/// Name to JSON.
const USERS: TableDefinition<'_, &str, &str> = TableDefinition::new("users");
/// Of version 1.
const NETWORKS: TableDefinition<'_, &str, &str> = TableDefinition::new("networks");
const FLOWS: TableDefinition<'_, (u64, &str), &str> = TableDefinition::new("flows");

const FILE: &str = "controller.redb";
const VERSION_KEY: &str = "version";
/// Version of the tables and of the JSON in them.
const VERSION: u64 = 2;
/// Records of the audit log that are kept.
const AUDIT_MAX: u64 = 10_000;

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

/// One thing to store, with its number, or to remove.
pub type Write = (Subject, Option<(u32, Item)>);

impl Store {
    /// Opens the store in `directory`, new if there is none, brings it to this version and reads all of it.
    ///
    /// # Errors
    /// The file cannot be read, is of a later version, or holds what this program did not write.
    pub fn open(directory: &Path) -> Result<(Store, Desired), StoreError> {
        let database = Database::create(directory.join(FILE)).map_err(failed("open"))?;
        let store = Store { database };
        let mut found = VERSION;
        store.change("prepare", |transaction| {
            let mut meta = transaction.open_table(META)?;
            found = meta.get(VERSION_KEY)?.map_or(VERSION, |version| version.value());
            if found > VERSION {
                return Ok(());
            }
            let mut objects = transaction.open_table(OBJECTS)?;
            if found < 2 {
                for (number, row) in (1..).zip(transaction.open_table(NETWORKS)?.iter()?) {
                    let (name, text) = row?;
                    objects.insert((Kind::Network.singular(), name.value()), (number, text.value()))?;
                }
                for row in transaction.open_table(FLOWS)?.iter()? {
                    let (key, text) = row?;
                    let (dpid, id) = key.value();
                    let subject = Subject::flow(Dpid(dpid), id);
                    objects.insert((subject.kind.singular(), subject.name.as_str()), (0, text.value()))?;
                }
                transaction.delete_table(NETWORKS)?;
                transaction.delete_table(FLOWS)?;
            }
            meta.insert(VERSION_KEY, VERSION)?;
            transaction.open_table(AUDIT)?;
            transaction.open_table(USERS).map(drop).map_err(Into::into)
        })?;
        if found > VERSION {
            return Err(StoreError::Version { found });
        }
        let desired = store.read()?;
        Ok((store, desired))
    }

    fn read(&self) -> Result<Desired, StoreError> {
        let mut rows = Vec::new();
        let mut read = || -> Result<(), redb::Error> {
            for row in self.database.begin_read()?.open_table(OBJECTS)?.iter()? {
                let (key, value) = row?;
                let ((kind, name), (number, text)) = (key.value(), value.value());
                rows.push((kind.to_owned(), name.to_owned(), number, text.to_owned()));
            }
            Ok(())
        };
        read().map_err(failed("read"))?;
        let mut desired = Desired::default();
        for (kind, name, number, text) in rows {
            let content = |detail: String| StoreError::Content { what: format!("{kind} {name}"), detail };
            let kind = Kind::from_singular(&kind).ok_or_else(|| content("no such kind".into()))?;
            let value = serde_json::from_str(&text).map_err(|error| content(error.to_string()))?;
            let mut errors = Errors::new();
            let item = Item::from_json(kind, value, &mut errors).ok_or_else(|| {
                content(errors.list().iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
            })?;
            desired.set(&Subject { kind, name }, Some(item), Some(number));
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

    /// Stores and removes things, all or none, and notes who did it. Durable on return.
    ///
    /// # Errors
    /// The database or the disk; then nothing is changed.
    pub fn write(&self, writes: &[Write], audit: &[Value]) -> Result<(), StoreError> {
        self.change("write", |transaction| {
            let mut objects = transaction.open_table(OBJECTS)?;
            for (subject, item) in writes {
                let key = (subject.kind.singular(), subject.name.as_str());
                match item {
                    Some((number, item)) => {
                        objects.insert(key, (*number, item.to_json().to_string().as_str()))?;
                    }
                    None => drop(objects.remove(key)?),
                }
            }
            let mut log = transaction.open_table(AUDIT)?;
            let next = log.last()?.map_or(1, |(last, _)| last.value() + 1);
            for (number, record) in (next..).zip(audit) {
                log.insert(number, record.to_string().as_str())?;
            }
            while log.len()? > AUDIT_MAX {
                log.pop_first()?;
            }
            Ok(())
        })
    }

    /// Records of the audit log with numbers below `before`, the latest first.
    ///
    /// # Errors
    /// The database or the disk.
    pub fn audit(&self, before: u64, limit: usize) -> Result<Vec<Value>, StoreError> {
        let read = || -> Result<Vec<Value>, redb::Error> {
            let table = self.database.begin_read()?.open_table(AUDIT)?;
            let mut records = Vec::new();
            for row in table.range(..before)?.rev().take(limit) {
                let (number, text) = row?;
                let mut record: Value = serde_json::from_str(text.value()).unwrap_or_default();
                record["number"] = json!(number.value());
                records.push(record);
            }
            Ok(records)
        };
        read().map_err(failed("read"))
    }

    /// Every user, by name.
    ///
    /// # Errors
    /// The database or the disk.
    pub fn users(&self) -> Result<Vec<(String, Value)>, StoreError> {
        let read = || -> Result<Vec<(String, Value)>, redb::Error> {
            let table = self.database.begin_read()?.open_table(USERS)?;
            let row = |row: Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, &str>), _>| {
                let (name, text) = row?;
                let value = serde_json::from_str(text.value()).unwrap_or_default();
                Ok((name.value().to_owned(), value))
            };
            table.iter()?.map(row).collect()
        };
        read().map_err(failed("read"))
    }

    /// Stores or removes a user, and notes who did it. Durable on return.
    ///
    /// # Errors
    /// The database or the disk; then nothing is changed.
    pub fn set_user(&self, name: &str, user: Option<&Value>, audit: &Value) -> Result<(), StoreError> {
        self.change("write", |transaction| {
            let mut users = transaction.open_table(USERS)?;
            match user {
                Some(user) => drop(users.insert(name, user.to_string().as_str())?),
                None => drop(users.remove(name)?),
            }
            let mut log = transaction.open_table(AUDIT)?;
            let next = log.last()?.map_or(1, |(last, _)| last.value() + 1);
            log.insert(next, audit.to_string().as_str()).map(drop).map_err(Into::into)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: Kind, value: Value) -> Item {
        Item::from_json(kind, value, &mut Errors::new()).expect("a good item")
    }

    fn network(vlan: u16) -> Item {
        item(Kind::Network, json!({"vlan": vlan, "ports": [{"dpid": 1, "port": "p1", "mode": "trunk"}]}))
    }

    fn flow(priority: u16) -> Item {
        let flow = json!({"priority": priority, "match": {"in_port": 1}, "actions": [{"output": 2}]});
        item(Kind::Flow, flow)
    }

    #[test]
    fn what_was_stored_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let (store, desired) = Store::open(directory.path()).unwrap();
        assert_eq!(desired, Desired::default());
        let net = |name: &str| Subject::new(Kind::Network, name);
        let far = Subject::flow(Dpid(u64::MAX), "f");
        let writes = [
            vec![(net("red"), Some((7, network(10)))), (net("blue"), Some((2, network(20))))],
            vec![(net("red"), Some((7, network(11)))), (net("blue"), None)],
            vec![(far.clone(), Some((0, flow(7)))), (Subject::flow(Dpid(1), "f"), Some((0, flow(8))))],
            vec![(Subject::flow(Dpid(1), "f"), None)],
        ];
        for (number, write) in writes.iter().enumerate() {
            store.write(write, &[json!({"who": number})]).unwrap();
        }
        let user = json!({"role": "read"});
        store.set_user("eve", Some(&user), &json!({"who": 4})).unwrap();
        drop(store);
        let (store, desired) = Store::open(directory.path()).unwrap();
        let mut expected = Desired::default();
        expected.set(&net("red"), Some(network(11)), Some(7));
        expected.set(&far, Some(flow(7)), None);
        assert_eq!(desired, expected);
        assert_eq!(store.users().unwrap(), [("eve".to_owned(), user)]);
        let latest = store.audit(u64::MAX, 2).unwrap();
        assert_eq!(latest, [json!({"number": 5, "who": 4}), json!({"number": 4, "who": 3})]);
        assert_eq!(store.audit(3, 9).unwrap().len(), 2);
    }

    #[test]
    fn a_store_of_the_first_version_is_brought_to_this_one() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::create(directory.path().join(FILE)).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert(VERSION_KEY, 1).unwrap();
        let (net, flow_text) = (network(10).to_json().to_string(), flow(7).to_json().to_string());
        transaction.open_table(NETWORKS).unwrap().insert("red", net.as_str()).unwrap();
        transaction.open_table(FLOWS).unwrap().insert((5, "f"), flow_text.as_str()).unwrap();
        transaction.commit().unwrap();
        drop(database);
        for _ in 0..2 {
            let (_, desired) = Store::open(directory.path()).unwrap();
            assert_eq!(desired.networks["red"].vlan, 10);
            assert_eq!(desired.networks["red"].number, 1);
            assert_eq!(desired.flows[&(Dpid(5), "f".to_owned())].priority, 7);
        }
    }

    #[test]
    fn a_store_of_a_later_version_or_of_strange_content_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(directory.path()).unwrap();
        let put = |version: u64, text: &str| {
            let change = |t: &redb::WriteTransaction| {
                t.open_table(META)?.insert(VERSION_KEY, version)?;
                t.open_table(OBJECTS)?.insert(("network", "red"), (1, text))?;
                Ok(())
            };
            store.change("write", change).unwrap();
        };
        put(2, "{\"vlan\": 5000, \"ports\": []}");
        let error = store.read().unwrap_err();
        assert!(error.to_string().contains("network red"), "{error}");
        put(3, "{}");
        drop(store);
        let error = Store::open(directory.path()).err().expect("it is of a later version");
        assert!(matches!(error, StoreError::Version { found: 3 }), "{error}");
    }
}
