//! Unpacks the bytes of a layer into a folder that overlayfs can stack: decompression and digest (`stream`),
//! the tar format (`tar`, `header`, `pax`, `sparse`), the tree, which is created by descriptors only (`tree`,
//! `extract`), and the reverse (`recipe`).
//!
//! A layer is untrusted. It is read once, in order, within limits. No entry can name a place outside the
//! layer's folder. Nothing is used before both digests are verified.
//!
//! * [`dependencies`]: the dependencies of a layer on the layers below, recorded while it is unpacked
//! * [`frames`]: the frames of a zstd stream
//! * [`limits`]: the limits on an image, counted over all of its layers
//! * [`members`]: finds the members of a plain tar file without reading their content
//! * [`path`]: paths in a layer, relative to its root, without `.` and `..`
//! * [`select`]: copies single files of an archive, by their names, or unpacks one that is not a layer
//! * [`times`]: the times of folders, which are set last
//! * [`windows`]: memory for decompression

mod dependencies;
mod extract;
mod frames;
mod header;
mod limits;
mod members;
mod path;
mod pax;
mod recipe;
mod select;
mod sparse;
mod stream;
mod tar;
mod times;
mod tree;
mod windows;

pub(crate) use extract::extract;
pub(crate) use limits::Budget;
pub use limits::Limits;
pub(crate) use members::{MemberKind, Members};
pub(crate) use path::TreePath;
pub(crate) use recipe::rebuild;
pub use select::{copy_files, unpack_files};
pub(crate) use stream::decompressed;
pub(crate) use times::FolderTimes;
pub(crate) use tree::{OPAQUE, is_whiteout};
pub(crate) use windows::Windows;
