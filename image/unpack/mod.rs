//! From the bytes of a layer to a folder that overlayfs can stack: decompression and digest (`stream`), the tar format
//! (`tar`, `pax`, `sparse`), the tree that is made by descriptors only (`tree`, `extract`), and the way back (`recipe`).
//!
//! A layer comes from strangers. It is read once, in order, within limits; nothing in it can name a place outside its
//! folder, and nothing is trusted before both of its digests are checked.

mod extract;
mod frames;
mod limits;
mod members;
mod notes;
mod path;
mod pax;
mod recipe;
mod sparse;
mod stream;
mod tar;
mod times;
mod tree;
mod windows;

pub(crate) use extract::unpack;
pub(crate) use limits::Budget;
pub use limits::Limits;
pub(crate) use members::{MemberKind, Members};
pub(crate) use path::TreePath;
pub(crate) use recipe::rebuild;
pub(crate) use stream::decompressed;
pub(crate) use times::FolderTimes;
pub(crate) use tree::{OPAQUE, is_whiteout};
pub(crate) use windows::Windows;
