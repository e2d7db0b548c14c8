//! Entries for the journal of systemd, in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram per entry, a
//! list of fields. `MESSAGE` is the message with all its fields; `journalctl` shows it. Each field of the line is also a
//! field of the entry, so that `journalctl BERTH_POD=...` finds all entries of a pod.

use std::fmt::{Debug, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// The socket of journald.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The start of the names of berth's fields. Names without a prefix have a meaning in the journal
/// (systemd.journal-fields(7)).
const PREFIX: &str = "BERTH_";

/// The longest value in bytes. Datagrams are limited (`net.core.wmem_max`).
const MAX_VALUE: usize = 16 << 10;

/// The longest wait for a journald that does not read. After this the entry is dropped: the log must not stop pods.
const PATIENCE: Duration = Duration::from_millis(100);

/// Returns whether standard error is connected to journald: systemd sets `JOURNAL_STREAM` to its device and inode
/// (systemd.exec(5)). A program that redirects standard error inherits the variable, so both are compared.
pub(super) fn receives_stderr() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// The connection to journald.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    pub(super) fn connect() -> io::Result<Self> {
        // The socket is not connected: journald may be restarted.
        std::fs::metadata(SOCKET)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }
}

/// The fields of a span or an event, in order.
#[derive(Debug, Default)]
struct JournalFields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl JournalFields {
    fn set(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
            return;
        }
        match self.others.iter_mut().find(|(name, _)| *name == field.name()) {
            Some((_, old)) => *old = value,
            None => self.others.push((field.name(), value)),
        }
    }
}

impl Visit for JournalFields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.set(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.to_owned());
    }
}

impl<S> Layer<S> for Journal
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = JournalFields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<JournalFields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = JournalFields::default();
        event.record(&mut fields);
        let mut of_spans = Vec::new();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(found) = span.extensions().get::<JournalFields>() {
                of_spans.extend(found.others.iter().cloned());
            }
        }
        let metadata = event.metadata();
        let entry = entry(*metadata.level(), metadata.target(), &fields, &of_spans);
        // An entry that cannot be sent is dropped, as a line on standard error is.
        drop(self.socket.send_to(&entry, SOCKET));
    }
}

/// Encodes an entry.
fn entry(level: Level, target: &str, fields: &JournalFields, of_spans: &[(&'static str, String)]) -> Vec<u8> {
    let mut line = fields.message.clone();
    for (name, value) in fields.others.iter().chain(of_spans) {
        // Writing to a string does not fail.
        _ = write!(line, " {name}={value:?}");
    }
    let mut entry = Vec::with_capacity(256);
    put(&mut entry, "MESSAGE", &line);
    put(&mut entry, "PRIORITY", priority(level));
    put(&mut entry, "SYSLOG_IDENTIFIER", "berth");
    put(&mut entry, "BERTH_TARGET", target);
    for (name, value) in fields.others.iter().chain(of_spans) {
        put(&mut entry, &field_name(name), value);
    }
    entry
}

/// Returns the priority of syslog(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

/// Returns the name of a field: upper case letters, digits and underscores, at most 64 bytes.
fn field_name(name: &str) -> String {
    let letters = name.bytes().map(|byte| match byte.is_ascii_alphanumeric() {
        true => char::from(byte.to_ascii_uppercase()),
        false => '_',
    });
    PREFIX.chars().chain(letters).take(64).collect()
}

/// Appends a field: `NAME=VALUE` if the value has one line, else the name and the value with its length before it.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(MAX_VALUE)];
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        let length = u64::try_from(value.len()).unwrap_or_default();
        entry.extend_from_slice(&length.to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_whole_line_and_its_fields() {
        let fields = JournalFields {
            message: "failed to remove cgroup".to_owned(),
            others: vec![("path", "/a".to_owned()), ("error", "two\nlines".to_owned())],
        };
        let entry = entry(Level::WARN, "berth::cgroups", &fields, &[("pod", "ce10".to_owned())]);
        let expected =
            b"MESSAGE=failed to remove cgroup path=\"/a\" error=\"two\\nlines\" pod=\"ce10\"\nPRIORITY=4\n\
            SYSLOG_IDENTIFIER=berth\nBERTH_TARGET=berth::cgroups\nBERTH_PATH=/a\nBERTH_ERROR\n\
            \x09\0\0\0\0\0\0\0two\nlines\nBERTH_POD=ce10\n";
        assert_eq!(String::from_utf8_lossy(&entry), String::from_utf8_lossy(expected));
    }

    #[test]
    fn names_and_values_are_limited() {
        assert_eq!(field_name("otel.name"), "BERTH_OTEL_NAME");
        assert_eq!(field_name(&"x".repeat(100)).len(), 64);
        let mut entry = Vec::new();
        put(&mut entry, "A", &"é".repeat(MAX_VALUE));
        assert!(entry.len() <= MAX_VALUE + 3);
    }
}
