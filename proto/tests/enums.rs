//! Tests that every enum field of every request is checked, at any depth: each one is set to an undefined value on the
//! wire.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so by panicking")]

use berth_proto::FILE_DESCRIPTOR_SET;
use berth_proto::enums::{Known, Unknown};
use berth_proto::v1::*;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// A number that is not a value of any enum.
const NONE: u64 = 4711;

/// Collects each path through the fields of a message to an enum, as numbers and names of the fields.
fn ways(
    file: &[DescriptorProto],
    message: &DescriptorProto,
    above: &[(u32, String)],
    found: &mut Vec<Vec<(u32, String)>>,
) {
    for field in &message.field {
        let mut way = above.to_vec();
        way.push((u32::try_from(field.number()).unwrap(), field.name().to_owned()));
        match field.r#type() {
            Type::Enum => found.push(way),
            Type::Message => {
                let name = field.type_name().rsplit('.').next().unwrap();
                if let Some(below) = file.iter().find(|message| message.name() == name) {
                    ways(file, below, &way, found);
                }
            }
            _ => {}
        }
    }
}

/// Encodes a message in which only the enum at the end of the path is set.
fn encoded(way: &[(u32, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Some(((number, _), below)) = way.split_first() else { return bytes };
    if below.is_empty() {
        encode_key(*number, WireType::Varint, &mut bytes);
        encode_varint(NONE, &mut bytes);
    } else {
        let inner = encoded(below);
        encode_key(*number, WireType::LengthDelimited, &mut bytes);
        encode_varint(u64::try_from(inner.len()).unwrap(), &mut bytes);
        bytes.extend(inner);
    }
    bytes
}

fn check<M: Message + Default + Known>(bytes: &[u8]) -> Result<(), Unknown> {
    M::decode(bytes).unwrap().check()
}

#[test]
fn no_enum_of_a_request_is_passed_over() {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let file = set.file.iter().find(|file| file.package() == "runtime.v1").unwrap();
    let mut seen = 0;
    type Check = fn(&[u8]) -> Result<(), Unknown>;
    let requests: [(&str, Check); 6] = [
        ("RunPodSandboxRequest", check::<RunPodSandboxRequest>),
        ("CreateContainerRequest", check::<CreateContainerRequest>),
        ("ListContainersRequest", check::<ListContainersRequest>),
        ("ListPodSandboxRequest", check::<ListPodSandboxRequest>),
        ("PullImageRequest", check::<PullImageRequest>),
        ("RestorePodRequest", check::<RestorePodRequest>),
    ];
    for (name, check) in requests {
        let message = file.message_type.iter().find(|message| message.name() == name).unwrap();
        let mut found = Vec::new();
        ways(&file.message_type, message, &[], &mut found);
        for way in found {
            seen += 1;
            let unknown = check(&encoded(&way)).unwrap_err();
            // The elements of a list are numbered.
            let path: Vec<&str> = way.iter().map(|(_, name)| name.as_str()).collect();
            assert_eq!(unknown.field.replace("[0]", ""), path.join("."), "{name}");
            assert_eq!(unknown.value, 4711);
        }
    }
    assert!(seen > 20, "{seen} enums");
}

#[test]
fn known_values_and_answers_pass() {
    let options = NamespaceOption { pid: NamespaceMode::Target.into(), ..NamespaceOption::default() };
    assert_eq!(options.check(), Ok(()));
    let unknown = NamespaceOption { pid: 4, ..NamespaceOption::default() }.check().unwrap_err();
    assert_eq!(unknown.to_string(), "invalid pid: 4 is not a value of NamespaceMode");
    assert!(NamespaceOption { ipc: -1, ..NamespaceOption::default() }.check().is_err());
    // The response of a newer daemon may have undefined values.
    let status = ContainerStatus { state: 77, ..ContainerStatus::default() };
    assert_eq!(ContainerStatusResponse { status: Some(status), ..Default::default() }.check(), Ok(()));
}
