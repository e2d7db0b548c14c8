//! The undo stack: each step of an operation that makes something pushes how to take it back.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

type Undo = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// What has been made so far and how to take it back, last first.
#[derive(Default)]
pub struct UndoStack {
    steps: Vec<(&'static str, Undo)>,
}

impl UndoStack {
    /// Remembers how to take back what was just made. Nothing of `undo` runs before [`UndoStack::run`].
    pub fn push<F>(&mut self, name: &'static str, undo: F)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.steps.push((name, Box::pin(undo)));
    }

    /// Takes everything back, last first, and goes on after an error.
    ///
    /// # Errors
    /// All that went wrong, each with the name of its step.
    pub async fn run(mut self) -> Result<(), Vec<String>> {
        let mut errors = Vec::new();
        while let Some((name, undo)) = self.steps.pop() {
            if let Err(error) = undo.await {
                errors.push(format!("{name}: {error}"));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

impl fmt::Debug for UndoStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn runs_last_first_and_reports_every_error() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut undo = UndoStack::default();
        for (name, fails) in [("first", true), ("second", false), ("third", true)] {
            let order = order.clone();
            undo.push(name, async move {
                order.lock().unwrap().push(name);
                if fails { Err("broken".to_owned()) } else { Ok(()) }
            });
        }
        assert_eq!(undo.run().await, Err(vec!["third: broken".to_owned(), "first: broken".to_owned()]));
        assert_eq!(*order.lock().unwrap(), ["third", "second", "first"]);
    }
}
