//! A record: the same value in memory and on disk. What the daemon intends is on disk before it is done, and fails where the
//! disk does. What has happened is true at once, whatever the disk says: it is written when the disk takes it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::Serialize;

use super::file::{self, FileError};
use super::writer::{RecordWriter, Unwritten};

/// A value with a file of its own.
#[derive(Debug)]
pub struct Record<T> {
    shared: Arc<Inner<T>>,
    writer: RecordWriter,
}

#[derive(Debug)]
struct Inner<T> {
    file: PathBuf,
    current: RwLock<T>,
    /// Held while the file is written: two writes never overtake one another.
    writing: Mutex<()>,
    /// The file is older than the value.
    unwritten: AtomicBool,
    /// The object is being removed: nothing is written any more.
    gone: AtomicBool,
}

impl<T: Clone + PartialEq + Serialize + std::fmt::Debug + Send + Sync + 'static> Record<T> {
    /// A value that is kept in `file`, which is not written yet.
    #[must_use]
    pub fn new(value: T, file: PathBuf, writer: RecordWriter) -> Self {
        let inner = Inner {
            file,
            current: RwLock::new(value),
            writing: Mutex::new(()),
            unwritten: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        };
        Self { shared: Arc::new(inner), writer }
    }

    /// Looks at the value without a copy.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.shared.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The value as it is now.
    #[must_use]
    pub fn get(&self) -> T {
        self.with(T::clone)
    }

    /// Changes the value as somebody intends: on disk first, then for everyone to see. It may block as long as the disk
    /// does.
    ///
    /// # Errors
    /// The file cannot be written; the value stays.
    pub fn intend(&self, change: impl Fn(&mut T)) -> Result<(), FileError> {
        let inner = &self.shared;
        let _in_order = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut intended = self.get();
        change(&mut intended);
        if !inner.gone.load(Ordering::Acquire) {
            file::replace(&inner.file, &intended)?;
        }
        let overtaken = {
            let mut current = inner.current.write().unwrap_or_else(PoisonError::into_inner);
            // Something may have happened meanwhile.
            change(&mut current);
            *current != intended
        };
        if overtaken {
            self.write_later();
        }
        Ok(())
    }

    /// Changes the value as something has happened: for everyone to see at once, and on disk as soon as that takes it.
    pub fn happened(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.shared.current.write().unwrap_or_else(PoisonError::into_inner));
        self.write_later();
    }

    /// Nothing is written any more: the file is being removed. A write that is on its way is waited for, so that it cannot
    /// come between the files that are removed and their folder: it may block as long as the disk does.
    pub fn give_up(&self) {
        self.shared.gone.store(true, Ordering::Release);
        drop(self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn write_later(&self) {
        if !self.shared.unwritten.swap(true, Ordering::AcqRel) {
            self.writer.write(self.shared.clone());
        }
    }
}

impl<T: Clone + Serialize + std::fmt::Debug + Send + Sync> Unwritten for Inner<T> {
    fn write(&self) -> Result<(), FileError> {
        let _in_order = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.gone.load(Ordering::Acquire) {
            return Ok(());
        }
        // What happens from here on asks for another write.
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
    fn what_has_happened_is_true_at_once_and_written_when_the_disk_takes_it() {
        let folder = tempfile::tempdir().unwrap();
        let writer = RecordWriter::start().unwrap();
        let path = folder.path().join("later/record.json");
        let record = Record::new(vec![1_u32], path.clone(), writer.clone());
        record.happened(|value| value.push(2));
        assert_eq!(record.get(), [1, 2]);
        record.happened(|value| value.push(3));
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
        record.give_up();
        record.happened(|value| value.push(2));
        assert!(writer.flush(std::time::Duration::from_secs(60)));
        assert!(!path.exists());
    }

    #[test]
    fn intents_and_facts_that_cross_are_all_there_and_written_in_the_end() {
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
                            // What is intended may be changed twice: it says what is to be so, not what to do.
                            0 => record
                                .intend(|value| {
                                    if !value.contains(&number) {
                                        value.push(number);
                                    }
                                })
                                .unwrap(),
                            _ => record.happened(|value| value.push(number)),
                        }
                    }
                });
            }
        });
        assert!(writer.flush(std::time::Duration::from_secs(60)));
        let mut value = record.get();
        assert_eq!(on_disk(&path), value);
        value.sort_unstable();
        let wanted: Vec<u32> =
            (0..4).flat_map(|thread| (0..100).map(move |number| thread * 1000 + number)).collect();
        assert_eq!(value, wanted);
    }
}
