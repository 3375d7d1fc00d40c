//! Tasks that callers have brought, by their names.
//!
//! Each is a file of the data directory, `tasks/{id}.json`: its description, when it came, and its pairs. They belong to
//! no model.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::artifacts::{ArtifactError, ArtifactId, atomic};
use crate::settings::Limits;
use crate::tasks::{AnyTask, LONGEST_TASK, Task, TextPair, UnknownTask, UserTask, UserTaskError};

/// The most bytes of a task's file, whatever the settings. A longer one is neither written nor read.
pub const LONGEST_TASK_FILE: usize = LONGEST_TASK + (1 << 20);

/// Tasks by their names.
pub type KeptTasks = BTreeMap<String, Arc<KeptTask>>;

/// A task that is kept.
#[derive(Debug)]
pub struct KeptTask {
    pub task: Arc<UserTask>,
    /// Seconds since 1970.
    pub created: u64,
    /// Of its file.
    bytes: usize,
}

/// What is in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFile<'a> {
    id: ArtifactId,
    description: String,
    created: u64,
    pairs: std::borrow::Cow<'a, [TextPair]>,
}

/// Why tasks could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum TaskStoreError {
    #[error(transparent)]
    File(#[from] ArtifactError),
    #[error("{}: {problem}", path.display())]
    Json { path: PathBuf, problem: String },
    #[error("there is a task {name} already; delete it first")]
    Exists { name: String },
    #[error("there are {0} tasks already, as many as are kept (limits.max_tasks); delete some")]
    Full(usize),
    #[error(
        "with this the tasks would take {total} bytes; at most {most} are kept (limits.max_task_bytes): delete some"
    )]
    NoRoom { total: usize, most: usize },
    #[error("the task would take {0} bytes; one may take {LONGEST_TASK_FILE}")]
    TooLong(usize),
    #[error("the writing of a task ended early")]
    Ended,
}

/// All tasks that callers have brought.
#[derive(Debug)]
pub struct TaskStore {
    directory: PathBuf,
    tasks: ArcSwap<KeptTasks>,
    /// Held over a whole change, on the disk and here, so that no two undo each other.
    changing: tokio::sync::Mutex<()>,
    limits: Limits,
}

impl TaskStore {
    /// The tasks in `data_directory`, to which others may be added.
    pub fn open(data_directory: &Path, limits: Limits) -> Result<Self, TaskStoreError> {
        let directory = data_directory.join("tasks");
        Ok(TaskStore {
            tasks: ArcSwap::from_pointee(read_all(&directory)?),
            directory,
            changing: tokio::sync::Mutex::new(()),
            limits,
        })
    }

    /// The tasks as they are now.
    pub fn all(&self) -> Arc<KeptTasks> {
        self.tasks.load_full()
    }

    /// One of the twenty, or one that is kept. The error names the nearest of the twenty.
    pub fn find(&self, name: &str) -> Result<AnyTask, UnknownTask> {
        match self.all().get(name) {
            Some(kept) => Ok(AnyTask::User(kept.task.clone())),
            None => name.parse::<Task>().map(AnyTask::from),
        }
    }

    /// Keeps a task, on the disk first.
    pub async fn add(
        &self,
        task: Arc<UserTask>,
        created: u64,
    ) -> Result<Arc<KeptTask>, TaskStoreError> {
        let _turn = self.changing.lock().await;
        let mut tasks = KeptTasks::clone(&self.all());
        let name = task.name().to_owned();
        if tasks.contains_key(&name) {
            return Err(TaskStoreError::Exists { name });
        }
        if tasks.len() >= self.limits.max_tasks {
            return Err(TaskStoreError::Full(tasks.len()));
        }
        let taken: usize = tasks.values().map(|kept| kept.bytes).sum();
        let (directory, most) = (self.directory.clone(), self.limits.max_task_bytes);
        let writing = tokio::task::spawn_blocking(move || {
            let path = path_of(&directory, task.name());
            let (json, kept) = written(&path, &task, created)?;
            let total = taken + json.len();
            if total > most {
                return Err(TaskStoreError::NoRoom { total, most });
            }
            atomic::create_directory(&directory)?;
            atomic::write(&path, &json)?;
            Ok(kept)
        });
        let kept = Arc::new(writing.await.map_err(|_| TaskStoreError::Ended)??);
        tasks.insert(name, kept.clone());
        self.tasks.store(Arc::new(tasks));
        Ok(kept)
    }

    /// Removes the task of that name, from the disk first; none where there is none.
    pub async fn remove(&self, name: &str) -> Result<Option<Arc<KeptTask>>, TaskStoreError> {
        let _turn = self.changing.lock().await;
        let mut tasks = KeptTasks::clone(&self.all());
        let Some(kept) = tasks.remove(name) else {
            return Ok(None);
        };
        let path = path_of(&self.directory, name);
        let removing = tokio::task::spawn_blocking(move || atomic::remove(&path));
        removing.await.map_err(|_| TaskStoreError::Ended)??;
        self.tasks.store(Arc::new(tasks));
        Ok(Some(kept))
    }
}

/// A task's name has the letters of an artifact's id, and so leads nowhere else.
fn path_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.json"))
}

/// The tasks in `directory`, which need not exist. Hidden files are what an interrupted writing has left.
fn read_all(directory: &Path) -> Result<KeptTasks, TaskStoreError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(KeptTasks::new()),
        Err(error) => return Err(ArtifactError::io("read", directory)(error).into()),
    };
    let mut tasks = KeptTasks::new();
    for entry in entries {
        let path = entry.map_err(ArtifactError::io("read", directory))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || !name.ends_with(".json") {
            continue;
        }
        let kept = parse(&path, &atomic::read_small(&path, LONGEST_TASK_FILE as u64)?)?;
        if path_of(directory, kept.task.name()) != path {
            let problem = format!("the task calls itself {:?}", kept.task.name());
            return Err(TaskStoreError::Json { path, problem });
        }
        tasks.insert(kept.task.name().to_owned(), Arc::new(kept));
    }
    Ok(tasks)
}

fn parse(path: &Path, json: &[u8]) -> Result<KeptTask, TaskStoreError> {
    let file: TaskFile = serde_json::from_slice(json).map_err(|error| json_error(path, &error))?;
    let task = UserTask::new(file.id.as_str(), file.description, file.pairs.into_owned());
    let task = task.map_err(|error: UserTaskError| TaskStoreError::Json {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    Ok(KeptTask {
        task: Arc::new(task),
        created: file.created,
        bytes: json.len(),
    })
}

/// The file of a task, and what is read from it: what could not be read again would keep the next start from happening.
fn written(
    path: &Path,
    task: &UserTask,
    created: u64,
) -> Result<(Vec<u8>, KeptTask), TaskStoreError> {
    let id = task.name().parse::<ArtifactId>();
    let file = TaskFile {
        id: id.map_err(|error| TaskStoreError::Json {
            path: path.to_owned(),
            problem: error.to_string(),
        })?,
        description: task.description().to_owned(),
        created,
        pairs: task.pairs().into(),
    };
    let json = serde_json::to_vec(&file).map_err(|error| json_error(path, &error))?;
    if json.len() > LONGEST_TASK_FILE {
        return Err(TaskStoreError::TooLong(json.len()));
    }
    let kept = parse(path, &json)?;
    Ok((json, kept))
}

fn json_error(path: &Path, error: &serde_json::Error) -> TaskStoreError {
    TaskStoreError::Json {
        path: path.to_owned(),
        problem: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Side;

    fn task(name: &str, pairs: usize) -> Arc<UserTask> {
        let side = |prompt: String, answer: &str| Side {
            prompt,
            answer: answer.into(),
        };
        let pairs = (0..pairs).map(|number| TextPair {
            presented: side(format!("a{number} \u{1f600}\u{1}"), "x"),
            counterfactual: side(format!("b{number}"), "y"),
            anything_else: number % 2 == 0,
        });
        let task = UserTask::new(name, "For tests.", pairs.collect());
        Arc::new(task.expect("a task"))
    }

    fn store(directory: &tempfile::TempDir, limits: Limits) -> Result<TaskStore, TaskStoreError> {
        TaskStore::open(directory.path(), limits)
    }

    #[tokio::test]
    async fn what_was_kept_is_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || store(&directory, Limits::default()).expect("a store");
        let tasks = open();
        tasks.add(task("one", 60), 7).await.expect("kept");
        tasks.add(task("two", 50), 8).await.expect("kept");
        let again = open().all();
        assert_eq!(again.keys().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(
            (&again["one"].task, again["one"].created),
            (&task("one", 60), 7)
        );
        assert_eq!(again["one"].bytes, tasks.all()["one"].bytes);

        assert_eq!(open().find("two").expect("a task").name(), "two");
        assert_eq!(open().find("var_if").expect("a task").name(), "var_if");
        assert_eq!(
            open().find("var_iff").expect_err("no task").near[0],
            "var_if"
        );

        assert!(tasks.remove("three").await.expect("a look").is_none());
        assert!(tasks.remove("one").await.expect("removed").is_some());
        assert_eq!(open().all().keys().collect::<Vec<_>>(), ["two"]);
    }

    #[tokio::test]
    async fn names_are_taken_once_and_bounds_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let limits = Limits {
            max_tasks: 2,
            max_task_bytes: 20_000,
            ..Limits::default()
        };
        let tasks = store(&directory, limits).expect("a store");
        tasks.add(task("one", 60), 7).await.expect("kept");
        let twice = tasks.add(task("one", 50), 8).await;
        assert!(matches!(twice, Err(TaskStoreError::Exists { .. })));
        let long = tasks.add(task("long", 600), 8).await.expect_err("no room");
        assert!(long.to_string().contains("limits.max_task_bytes"), "{long}");
        tasks.add(task("two", 60), 7).await.expect("kept");
        let third = tasks.add(task("three", 60), 7).await.expect_err("full");
        assert!(third.to_string().contains("limits.max_tasks"), "{third}");
        tasks.remove("one").await.expect("removed");
        tasks.add(task("three", 60), 7).await.expect("room again");
    }

    #[tokio::test]
    async fn a_file_that_is_no_task_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || store(&directory, Limits::default());
        let tasks = open().expect("a store");
        tasks.add(task("one", 60), 7).await.expect("kept");
        let folder = directory.path().join("tasks");
        std::fs::write(folder.join(".two.json.x.part"), b"{").expect("written");
        open().expect("what was being written is passed over");
        std::fs::copy(folder.join("one.json"), folder.join("two.json")).expect("copied");
        let error = open().expect_err("of another name").to_string();
        assert!(error.contains("calls itself \"one\""), "{error}");
        let few = br#"{"id": "two", "description": "", "created": 1, "pairs": []}"#;
        std::fs::write(folder.join("two.json"), few).expect("written");
        let error = open().expect_err("no pairs").to_string();
        assert!(
            error.contains("two.json: 0 pairs are for training"),
            "{error}"
        );
        std::fs::write(folder.join("two.json"), b"{").expect("written");
        let error = open().expect_err("no JSON").to_string();
        assert!(error.contains("two.json"), "{error}");
    }
}
