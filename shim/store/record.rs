//! A record: the same value in memory and on disk. An intent is written to disk before it is carried out, and
//! fails if the write fails. An observed fact takes effect in memory immediately and is written as soon as
//! the disk accepts it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::Serialize;

use super::file::{self, FileError};
use super::writer::{PendingWrite, RecordWriter};

/// A value that is stored in a file.
#[derive(Debug)]
pub struct Record<T> {
    shared: Arc<RecordState<T>>,
    writer: RecordWriter,
}

#[derive(Debug)]
struct RecordState<T> {
    file: PathBuf,
    current: RwLock<T>,
    /// Held while the file is written, so that writes happen in order.
    writing: Mutex<()>,
    /// The file is older than the value, and a write is queued.
    unwritten: AtomicBool,
    /// The object is being removed: the file is not written again.
    gone: AtomicBool,
}

impl<T: Clone + PartialEq + Serialize + std::fmt::Debug + Send + Sync + 'static> Record<T> {
    /// Creates a record that is stored in `file`. Nothing is written yet.
    #[must_use]
    pub fn new(value: T, file: PathBuf, writer: RecordWriter) -> Self {
        let inner = RecordState {
            file,
            current: RwLock::new(value),
            writing: Mutex::new(()),
            unwritten: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        };
        Self { shared: Arc::new(inner), writer }
    }

    /// Calls `look` with the value, without copying it.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.shared.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns a copy of the current value.
    #[must_use]
    pub fn get(&self) -> T {
        self.with(T::clone)
    }

    /// Records an intent: writes the changed value to disk, then makes it visible. Blocks as long as the disk
    /// does. `change` is called twice and must be idempotent.
    ///
    /// # Errors
    /// The file cannot be written; the value is unchanged.
    pub fn intend(&self, change: impl Fn(&mut T)) -> Result<(), FileError> {
        let inner = &self.shared;
        let _guard = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut intended = self.get();
        change(&mut intended);
        if !inner.gone.load(Ordering::Acquire) {
            file::replace(&inner.file, &intended)?;
        }
        let overtaken = {
            let mut current = inner.current.write().unwrap_or_else(PoisonError::into_inner);
            // The value may have changed during the write.
            change(&mut current);
            *current != intended
        };
        if overtaken {
            self.write_later();
        }
        Ok(())
    }

    /// Records a fact: the change is visible immediately and is written as soon as the disk accepts it.
    pub fn apply(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.shared.current.write().unwrap_or_else(PoisonError::into_inner));
        self.write_later();
    }

    /// Stops writing, since the file is being removed. Waits for a write in progress, so that it cannot
    /// recreate the file while its folder is removed. Blocks as long as the disk does.
    pub fn stop_writing(&self) {
        self.shared.gone.store(true, Ordering::Release);
        drop(self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn write_later(&self) {
        if !self.shared.unwritten.swap(true, Ordering::AcqRel) {
            self.writer.write(self.shared.clone());
        }
    }
}

impl<T: Clone + Serialize + std::fmt::Debug + Send + Sync> PendingWrite for RecordState<T> {
    fn write(&self) -> Result<(), FileError> {
        let _guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.gone.load(Ordering::Acquire) {
            return Ok(());
        }
        // A later change queues another write.
        self.unwritten.store(false, Ordering::Release);
        let value = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        file::replace(&self.file, &value).inspect_err(|_| self.unwritten.store(true, Ordering::Release))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn on_disk(path: &Path) -> Vec<u32> {
        file::read(path).unwrap_or_default()
    }

    #[test]
    fn an_intent_is_on_disk_or_fails() {
        let folder = tempfile::tempdir().unwrap();
        let writer = RecordWriter::start().unwrap();
        let path = folder.path().join("record.json");
        let record = Record::new(vec![1_u32], path.clone(), writer.clone());
        record.intend(|value| value.push(2)).unwrap();
        assert_eq!((record.get(), on_disk(&path)), (vec![1, 2], vec![1, 2]));
        let nowhere = Record::new(vec![1_u32], folder.path().join("none/record.json"), writer);
        assert!(nowhere.intend(|value| value.push(2)).is_err());
        assert_eq!(nowhere.get(), [1]);
    }

    #[test]
    fn a_fact_is_visible_immediately_and_written_when_the_disk_accepts_it() {
        let folder = tempfile::tempdir().unwrap();
        let writer = RecordWriter::start().unwrap();
        let path = folder.path().join("later/record.json");
        let record = Record::new(vec![1_u32], path.clone(), writer.clone());
        record.apply(|value| value.push(2));
        assert_eq!(record.get(), [1, 2]);
        record.apply(|value| value.push(3));
        std::fs::create_dir(folder.path().join("later")).unwrap();
        assert!(writer.flush(std::time::Duration::from_secs(60)), "the write is repeated");
        assert_eq!(on_disk(&path), [1, 2, 3]);
    }

    #[test]
    fn a_removed_object_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let writer = RecordWriter::start().unwrap();
        let path = folder.path().join("record.json");
        let record = Record::new(vec![1_u32], path.clone(), writer.clone());
        record.stop_writing();
        record.apply(|value| value.push(2));
        assert!(writer.flush(std::time::Duration::from_secs(60)));
        assert!(!path.exists());
    }

    #[test]
    fn concurrent_intents_and_facts_are_all_applied_and_written() {
        let folder = tempfile::tempdir().unwrap();
        let writer = RecordWriter::start().unwrap();
        let path = folder.path().join("record.json");
        let record = Record::new(Vec::<u32>::new(), path.clone(), writer.clone());
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                let record = &record;
                scope.spawn(move || {
                    for number in (0..100).map(|number| thread * 1000 + number) {
                        match number % 2 {
                            // An intent may be applied twice: it describes the final state, not an action.
                            0 => record
                                .intend(|value| {
                                    if !value.contains(&number) {
                                        value.push(number);
                                    }
                                })
                                .unwrap(),
                            _ => record.apply(|value| value.push(number)),
                        }
                    }
                });
            }
        });
        assert!(writer.flush(std::time::Duration::from_secs(60)));
        let mut value = record.get();
        assert_eq!(on_disk(&path), value);
        value.sort_unstable();
        let expected: Vec<u32> =
            (0..4).flat_map(|thread| (0..100).map(move |number| thread * 1000 + number)).collect();
        assert_eq!(value, expected);
    }
}
