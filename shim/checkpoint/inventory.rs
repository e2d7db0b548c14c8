//! Changes the inventory of a checkpoint so that its processes stay in the IPC and UTS namespaces of the new pod. CRIU creates
//! a namespace if its id differs from the one in the inventory, which is that of CRIU at the dump, and fills it with what the
//! checkpoint contains. Its option `--join-ns` fills the namespaces that it joins as well: the new pod would get the old
//! hostname.

use std::fs;
use std::io;
use std::path::Path;

use prost::Message as _;

use super::images::{INVENTORY, invalid, records};

/// The second number of the image with the processes.
const PROCESSES: u32 = 0x5027_3030;
/// The second number of an image with ids.
const IDS: u32 = 0x5443_2030;
/// The field of the inventory with the ids of CRIU (images/inventory.proto).
const ROOT_IDS: u64 = 3;
/// The fields of the ids of an IPC and a UTS namespace (images/core.proto).
const IPC: u64 = 7;
const UTS: u64 = 8;

/// A process of a checkpoint (images/pstree.proto).
#[derive(Clone, PartialEq, prost::Message)]
struct CheckpointedProcess {
    #[prost(uint32, required, tag = "1")]
    pid: u32,
}

/// The namespaces of a process (images/core.proto).
#[derive(Clone, PartialEq, prost::Message)]
struct NamespaceIds {
    #[prost(uint32, optional, tag = "7")]
    ipc: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    uts: Option<u32>,
}

/// Makes the first process, and those that share its namespaces, stay in the IPC and UTS namespaces of CRIU.
///
/// # Errors
/// An image cannot be read, or the inventory not written.
pub fn share_namespaces(images: &Path) -> io::Result<()> {
    let first = only(records(&images.join("pstree.img"), PROCESSES)?)?;
    let pid = CheckpointedProcess::decode(&first[..]).map_err(invalid)?.pid;
    let ids = only(records(&images.join(format!("ids-{pid}.img")), IDS)?)?;
    let ids = NamespaceIds::decode(&ids[..]).map_err(invalid)?;
    let path = images.join("inventory.img");
    let inventory = only(records(&path, INVENTORY)?)?;
    let change = |root: &[u8]| {
        let ipc = replace_number(root, IPC, ids.ipc?)?;
        replace_number(&ipc, UTS, ids.uts?)
    };
    let changed = replace_message(&inventory, ROOT_IDS, change);
    let changed = changed.ok_or_else(|| invalid("the inventory has no namespaces"))?;
    let length = u32::try_from(changed.len()).map_err(invalid)?;
    let header = [INVENTORY, length].map(u32::to_le_bytes).concat();
    fs::write(path, [header, changed].concat())
}

/// Returns the first record, which describes the first process or the whole checkpoint.
fn only(records: Vec<Vec<u8>>) -> io::Result<Vec<u8>> {
    records.into_iter().next().ok_or_else(|| invalid("an image without content"))
}

/// A field of a protobuf message (protobuf.dev, "Encoding"): its number, its whole encoding, and the content if it has a
/// length.
struct Field<'a> {
    number: u64,
    encoded: &'a [u8],
    content: Option<&'a [u8]>,
}

/// Splits a message into its fields. CRIU's own fields that berth does not know must stay. None if it is damaged.
fn fields(mut message: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let (tag, rest) = read_number(message)?;
        let (content, rest) = match tag & 7 {
            0 => (None, read_number(rest)?.1),
            1 => (None, rest.get(8..)?),
            2 => {
                let (length, rest) = read_number(rest)?;
                let (content, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                (Some(content), rest)
            }
            5 => (None, rest.get(4..)?),
            _ => return None,
        };
        let encoded = message.get(..message.len().checked_sub(rest.len())?)?;
        fields.push(Field { number: tag >> 3, encoded, content });
        message = rest;
    }
    Some(fields)
}

fn replace_number(message: &[u8], number: u64, value: u32) -> Option<Vec<u8>> {
    let mut changed = without(&fields(message)?, number);
    write_number(&mut changed, number << 3);
    write_number(&mut changed, value.into());
    Some(changed)
}

fn replace_message(
    message: &[u8],
    number: u64,
    change: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    let fields = fields(message)?;
    let found = fields.iter().find(|field| field.number == number)?;
    let inner = change(found.content?)?;
    let mut changed = without(&fields, number);
    write_number(&mut changed, number << 3 | 2);
    write_number(&mut changed, u64::try_from(inner.len()).ok()?);
    changed.extend(inner);
    Some(changed)
}

/// The fields that do not have this number, encoded.
fn without(fields: &[Field<'_>], number: u64) -> Vec<u8> {
    let others = fields.iter().filter(|field| field.number != number);
    others.flat_map(|field| field.encoded).copied().collect()
}

fn read_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut rest = bytes;
    let number = prost::encoding::decode_varint(&mut rest).ok()?;
    Some((number, rest))
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    prost::encoding::encode_varint(number, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The inventory with a field that berth does not know.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Inventory {
        #[prost(uint32, required, tag = "1")]
        version: u32,
        #[prost(message, optional, tag = "3")]
        root: Option<Ids>,
        #[prost(string, optional, tag = "13")]
        run: Option<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Ids {
        #[prost(uint32, required, tag = "1")]
        vm: u32,
        #[prost(uint32, optional, tag = "7")]
        ipc: Option<u32>,
        #[prost(uint32, optional, tag = "8")]
        uts: Option<u32>,
        #[prost(uint32, optional, tag = "9")]
        mounts: Option<u32>,
    }

    fn image(kind: u32, record: &[u8]) -> Vec<u8> {
        let length = u32::try_from(record.len()).unwrap();
        let common = (kind != INVENTORY).then_some(0x5456_4319);
        let header = common.into_iter().chain([kind, length]).flat_map(u32::to_le_bytes);
        header.chain(record.iter().copied()).collect()
    }

    #[test]
    fn only_the_ids_of_the_two_namespaces_change() {
        let folder = tempfile::tempdir().unwrap();
        let ids = |ipc, uts, mounts| Ids { vm: 1, ipc: Some(ipc), uts: Some(uts), mounts: Some(mounts) };
        let write = |name: &str, kind, record: Vec<u8>| {
            fs::write(folder.path().join(name), image(kind, &record)).unwrap();
        };
        write("pstree.img", PROCESSES, CheckpointedProcess { pid: 7 }.encode_to_vec());
        write("ids-7.img", IDS, ids(11, 12, 13).encode_to_vec());
        let before = Inventory { version: 2, root: Some(ids(1, 2, 3)), run: Some("x".to_owned()) };
        write("inventory.img", INVENTORY, before.encode_to_vec());
        share_namespaces(folder.path()).unwrap();
        let after = records(&folder.path().join("inventory.img"), INVENTORY).unwrap();
        let after = Inventory::decode(&after[0][..]).unwrap();
        assert_eq!(after, Inventory { root: Some(ids(11, 12, 3)), ..before });
    }

    #[test]
    fn damaged_messages_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(share_namespaces(folder.path()).is_err());
        for bad in [&[0x1a, 9, 1][..], &[0x08], &[0x0f], &[0x0d, 1]] {
            assert!(fields(bad).is_none(), "{bad:?}");
        }
        assert!(replace_message(&[8, 1], ROOT_IDS, |_| Some(Vec::new())).is_none());
    }
}
