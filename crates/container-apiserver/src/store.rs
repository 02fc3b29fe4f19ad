//! What is remembered: one SQLite database in WAL mode.
//!
//! The directory of a container holds its configuration and disk; the row here holds where it is
//! in its life. WAL with `synchronous=NORMAL` survives the death of this process whole; a power
//! cut may take the last moments, which [`crate::reconcile`] then fills in from the directories.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use container_api::network::Attached;
use container_api::types::{ContainerConfig, ExitRecord, Resources, Status, Timestamp, VmOrigin};
use container_api::{ApiError, ErrorCode};
use rusqlite::{Connection, OptionalExtension, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::lifecycle::Life;
use crate::process::{Identity, boot_id};

/// Version of the tables below (`PRAGMA user_version`).
const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
    CREATE TABLE container (
        id      TEXT PRIMARY KEY,
        config  TEXT NOT NULL,  -- ContainerConfig
        image   TEXT NOT NULL,  -- ImageDisk
        status  TEXT NOT NULL,  -- Status
        started TEXT,           -- Timestamp
        exit    TEXT,           -- ExitRecord
        runtime TEXT            -- Runtime, while a helper may live
    ) STRICT;
    -- How containers ended that were removed at their end, for callers that ask a moment later.
    CREATE TABLE ended (
        number  INTEGER PRIMARY KEY AUTOINCREMENT,
        id      TEXT NOT NULL,
        exit    TEXT NOT NULL
    ) STRICT;
    PRAGMA user_version = 1;
";
/// Rows kept in `ended`.
const ENDED_KEPT: i64 = 256;

/// The disk of a container's image, and the digests that keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageDisk {
    /// The EROFS image; relative to the app root when it is in there, so that a root can move.
    pub disk: PathBuf,
    /// The index or manifest that the reference named.
    pub index_digest: String,
    /// The manifest of the chosen platform.
    pub manifest_digest: String,
}

/// The helper that was started for a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// The process.
    pub process: Identity,
    /// The host's boot that it belongs to.
    pub boot_id: String,
    /// How its VM came to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<VmOrigin>,
    /// The limits in force, when they were changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Its networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Attached>,
}

impl Runtime {
    /// A process of this boot.
    pub fn now(process: Identity) -> Runtime {
        Runtime { process, boot_id: boot_id(), origin: None, resources: None, network: None }
    }
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What was asked for.
    pub config: ContainerConfig,
    /// Its image.
    pub image: ImageDisk,
    /// Where it is.
    pub life: Life,
    /// The helper started last, unless its end was seen.
    pub runtime: Option<Runtime>,
}

/// The open database.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        use rusqlite::ErrorCode as Sql;
        let code = match &error.source {
            StoreFault::Sql(e) if e.sqlite_error_code() == Some(Sql::DiskFull) => {
                ErrorCode::ResourceExhausted
            }
            _ => ErrorCode::Internal,
        };
        ApiError::new(code, format!("state.db: {}: {}", error.operation, error.source))
    }
}

/// A failure of the database.
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub struct StoreError {
    operation: &'static str,
    source: StoreFault,
}

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    /// SQLite says so.
    #[error(transparent)]
    Sql(#[from] rusqlite::Error),
    /// A column does not hold what it should.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Written by a later release.
    #[error("version {0} is newer than this program's {SCHEMA_VERSION}: update container")]
    Newer(i64),
}

fn failed<E: Into<StoreFault>>(operation: &'static str) -> impl FnOnce(E) -> StoreError {
    move |source| StoreError { operation, source: source.into() }
}

impl StoreError {
    /// Whether the file itself is unusable (not: too new, or the disk full).
    pub fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode as Sql;
        matches!(&self.source, StoreFault::Sql(e) if matches!(
            e.sqlite_error_code(), Some(Sql::DatabaseCorrupt | Sql::NotADatabase)))
    }
}

impl Store {
    /// Opens the database, or makes it.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let open = || -> Result<Connection, StoreFault> {
            let connection = Connection::open(path)?;
            connection.busy_timeout(std::time::Duration::from_secs(5))?;
            // The cache is per connection and in KiB when negative; the rows are small.
            connection.execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-256;",
            )?;
            let version: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0))?;
            match version {
                0 => connection.execute_batch(&format!("BEGIN; {SCHEMA} COMMIT;"))?,
                SCHEMA_VERSION => {}
                newer => return Err(StoreFault::Newer(newer)),
            }
            Ok(connection)
        };
        let connection = open().map_err(failed("opening"))?;
        Ok(Store { connection: Mutex::new(connection) })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All rows; those that can't be read are left out and named in the second list.
    pub fn load(&self) -> Result<(Vec<Record>, Vec<String>), StoreError> {
        let connection = self.lock();
        let mut statement = connection
            .prepare("SELECT id, config, image, status, started, exit, runtime FROM container")
            .map_err(failed("reading"))?;
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        let mut rows = statement.query([]).map_err(failed("reading"))?;
        while let Some(row) = rows.next().map_err(failed("reading"))? {
            match read(row) {
                Ok(record) => records.push(record),
                Err(error) => {
                    let id: String = row.get(0).map_err(failed("reading"))?;
                    tracing::error!(container = id, %error, "a row can't be read");
                    unreadable.push(id);
                }
            }
        }
        Ok((records, unreadable))
    }

    /// Writes a row, new or changed.
    pub fn put(&self, record: &Record) -> Result<(), StoreError> {
        let put = || -> Result<(), StoreFault> {
            let exit = record.life.exit.as_ref().map(serde_json::to_string).transpose()?;
            let runtime = record.runtime.as_ref().map(serde_json::to_string).transpose()?;
            self.lock().execute(
                "INSERT OR REPLACE INTO container VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    record.config.id,
                    serde_json::to_string(&record.config)?,
                    serde_json::to_string(&record.image)?,
                    record.life.status.to_string(),
                    record.life.started.map(|t| t.to_string()),
                    exit,
                    runtime,
                ],
            )?;
            Ok(())
        };
        put().map_err(failed("writing"))
    }

    /// Writes where a container is in its life.
    pub fn put_life(
        &self,
        id: &str,
        life: &Life,
        runtime: Option<&Runtime>,
    ) -> Result<(), StoreError> {
        let put = || -> Result<(), StoreFault> {
            let exit = life.exit.as_ref().map(serde_json::to_string).transpose()?;
            let runtime = runtime.map(serde_json::to_string).transpose()?;
            self.lock().execute(
                "UPDATE container SET status=?2, started=?3, exit=?4, runtime=?5 WHERE id=?1",
                params![
                    id,
                    life.status.to_string(),
                    life.started.map(|t| t.to_string()),
                    exit,
                    runtime
                ],
            )?;
            Ok(())
        };
        put().map_err(failed("writing"))
    }

    /// Forgets a container, but keeps how it ended for a while when `exit` says so.
    pub fn remove(&self, id: &str, exit: Option<&ExitRecord>) -> Result<(), StoreError> {
        let remove = || -> Result<(), StoreFault> {
            let exit = exit.map(serde_json::to_string).transpose()?;
            let mut connection = self.lock();
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM container WHERE id=?1", [id])?;
            if let Some(exit) = exit {
                transaction.execute("INSERT INTO ended (id, exit) VALUES (?1, ?2)", [id, &exit])?;
                transaction.execute(
                    "DELETE FROM ended WHERE number <= (SELECT max(number) FROM ended) - ?1",
                    [ENDED_KEPT],
                )?;
            }
            transaction.commit()?;
            Ok(())
        };
        remove().map_err(failed("removing"))
    }

    /// How a container ended that was removed at its end.
    pub fn ended(&self, id: &str) -> Result<Option<ExitRecord>, StoreError> {
        let query = || -> Result<Option<ExitRecord>, StoreFault> {
            let sql = "SELECT exit FROM ended WHERE id=?1 ORDER BY number DESC LIMIT 1";
            let text: Option<String> =
                self.lock().query_row(sql, [id], |row| row.get(0)).optional()?;
            Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
        };
        query().map_err(failed("reading"))
    }
}

fn read(row: &rusqlite::Row<'_>) -> Result<Record, StoreFault> {
    fn json<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
        serde_json::from_str(text)
    }
    let text = |column: usize| row.get::<_, String>(column);
    let optional = |column: usize| row.get::<_, Option<String>>(column);
    let status: Status = serde_json::from_value(text(3)?.into())?;
    let started: Option<Timestamp> =
        optional(4)?.map(|t| serde_json::from_value(t.into())).transpose()?;
    let exit = optional(5)?.as_deref().map(json).transpose()?;
    Ok(Record {
        config: json(&text(1)?)?,
        image: json(&text(2)?)?,
        life: Life { status, started, exit },
        runtime: optional(6)?.as_deref().map(json).transpose()?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use container_api::types::*;

    pub(crate) fn config(id: &str) -> ContainerConfig {
        ContainerConfig {
            id: id.into(),
            image: ImageDescription {
                reference: "docker.io/library/x:latest".into(),
                descriptor: Descriptor {
                    media_type: "application/vnd.oci.image.index.v1+json".into(),
                    digest: "sha256:00".into(),
                    size: 1,
                },
            },
            platform: Platform::host(),
            init_process: ProcessConfig {
                executable: ByteString(vec![b'/', 0xff]),
                working_directory: "/".into(),
                ..ProcessConfig::default()
            },
            resources: Resources { cpus: 1, memory_in_bytes: 1 << 30 },
            hostname: id.into(),
            labels: Default::default(),
            read_only: false,
            tmpfs: Vec::new(),
            mounts: Vec::new(),
            pids_limit: None,
            restart_memory: None,
            shm_size: 1 << 26,
            use_init: false,
            capabilities: Vec::new(),
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            stop_signal: "SIGTERM".into(),
            kernel: None,
            image_volumes: Vec::new(),
            virtualization: false,
            auto_remove: false,
            restart: Default::default(),
            creation_date: Timestamp::now(),
            runtime_handler: "container-runtime-linux".into(),
            network: Default::default(),
            published_sockets: Vec::new(),
            security: container_api::seccomp::Security::default(),
            ssh: false,
        }
    }

    pub(crate) fn image() -> ImageDisk {
        ImageDisk {
            disk: "images/erofs/x.erofs".into(),
            index_digest: "sha256:00".into(),
            manifest_digest: "sha256:01".into(),
        }
    }

    #[test]
    fn rows_come_back_as_they_were() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let store = Store::open(&path).unwrap();
        let mut record =
            Record { config: config("a"), image: image(), life: Life::new(), runtime: None };
        store.put(&record).unwrap();
        record.life.status = Status::Stopped;
        record.life.exit = Some(ExitRecord {
            exit_code: 3,
            signal: None,
            out_of_memory: false,
            stop_requested: false,
            out_of_memory_kills: Vec::new(),
            reason: "exited".into(),
            exited_date: Timestamp::now(),
        });
        record.runtime = Some(Runtime::now(Identity { pid: 5, start_ticks: 6 }));
        store.put_life("a", &record.life, record.runtime.as_ref()).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), (vec![record.clone()], vec![]));
        store.remove("a", record.life.exit.as_ref()).unwrap();
        assert_eq!(store.load().unwrap().0, vec![]);
        assert_eq!(store.ended("a").unwrap(), record.life.exit);
        for i in 0..300 {
            store.remove(&format!("x{i}"), record.life.exit.as_ref()).unwrap();
        }
        assert_eq!(store.ended("a").unwrap(), None);
        assert!(store.ended("x299").unwrap().is_some());
    }

    #[test]
    fn a_newer_or_damaged_database_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        drop(Store::open(&path).unwrap());
        Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 9").unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(!error.is_damage());
        assert!(ApiError::from(error).message.contains("version 9 is newer"));
        let garbage = directory.path().join("garbage.db");
        std::fs::write(&garbage, "not a database".repeat(500)).unwrap();
        assert!(Store::open(&garbage).unwrap_err().is_damage());
    }

    #[test]
    fn a_row_that_cannot_be_read_does_not_hide_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        for id in ["a", "b"] {
            let record =
                Record { config: config(id), image: image(), life: Life::new(), runtime: None };
            store.put(&record).unwrap();
        }
        store.lock().execute("UPDATE container SET config='{}' WHERE id='a'", []).unwrap();
        let (records, unreadable) = store.load().unwrap();
        assert_eq!((records.len(), unreadable), (1, vec!["a".to_owned()]));
    }
}
