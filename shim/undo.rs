//! The undo stack: each step of an operation that creates something pushes the function that undoes it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

type Undo = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// The undo functions of the finished steps. They run in reverse order.
#[derive(Default)]
pub struct UndoStack {
    steps: Vec<(&'static str, Undo)>,
}

impl UndoStack {
    /// Adds the undo function of a finished step. It does not run before [`UndoStack::run`].
    pub fn push<F>(&mut self, name: &'static str, undo: F)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.steps.push((name, Box::pin(undo)));
    }

    /// Undoes all steps in reverse order, and continues after an error.
    ///
    /// # Errors
    /// All errors, each with the name of its step.
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
