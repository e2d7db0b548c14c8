//! Compares the compiled protos with `facts.tsv`, the table of everything on the wire: every RPC, message, field and enum
//! value, in both directions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so by panicking")]

use std::collections::BTreeSet;

use berth_proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const FACTS: &str = include_str!("../facts.tsv");
const PACKAGE: &str = ".runtime.v1.";

/// Returns the lines of the table, without trailing white space, which marks empty columns.
fn written() -> BTreeSet<String> {
    FACTS.lines().filter(|line| !line.starts_with('#')).map(|line| line.trim_end().to_owned()).collect()
}

/// Returns the same lines, generated from the compiled descriptors.
fn compiled() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let file = set.file.iter().find(|file| file.package() == "runtime.v1").unwrap();
    let mut lines = BTreeSet::new();
    for service in &file.service {
        for method in &service.method {
            assert!(!method.client_streaming(), "{} streams requests", method.name());
            let kind = if method.server_streaming() { "stream" } else { "unary" };
            let (request, response) = (local(method.input_type()), local(method.output_type()));
            lines.insert(format!(
                "rpc\t{}\t{}\t{kind}\t{request} -> {response}",
                service.name(),
                method.name()
            ));
        }
    }
    file.enum_type.iter().for_each(|kind| add_enum(&mut lines, "", kind));
    file.message_type.iter().for_each(|message| add_message(&mut lines, "", message));
    lines
}

fn local(type_name: &str) -> &str {
    type_name.strip_prefix(PACKAGE).unwrap()
}

fn add_enum(lines: &mut BTreeSet<String>, scope: &str, kind: &EnumDescriptorProto) {
    for value in &kind.value {
        lines.insert(format!("enum\t{scope}{}\t{}\t{}", kind.name(), value.name(), value.number()));
    }
}

fn add_message(lines: &mut BTreeSet<String>, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}{}", message.name());
    assert!(message.oneof_decl.is_empty(), "{name} has a oneof, which the table cannot describe");
    if message.field.is_empty() {
        lines.insert(format!("message\t{name}"));
    }
    for field in &message.field {
        let deprecated =
            if field.options.as_ref().is_some_and(|o| o.deprecated()) { "\tdeprecated" } else { "" };
        let kind = type_of(message, field);
        lines.insert(format!("message\t{name}\t{}\t{}\t{kind}{deprecated}", field.name(), field.number()));
    }
    let inner = format!("{name}.");
    message.enum_type.iter().for_each(|kind| add_enum(lines, &inner, kind));
    for nested in message.nested_type.iter().filter(|nested| !is_map_entry(nested)) {
        add_message(lines, &inner, nested);
    }
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry())
}

fn type_of(owner: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let single = match field.r#type() {
        Type::Message | Type::Enum => local(field.type_name()).to_owned(),
        Type::Double => "double".to_owned(),
        Type::Bool => "bool".to_owned(),
        Type::String => "string".to_owned(),
        Type::Bytes => "bytes".to_owned(),
        Type::Int32 => "int32".to_owned(),
        Type::Int64 => "int64".to_owned(),
        Type::Uint32 => "uint32".to_owned(),
        Type::Uint64 => "uint64".to_owned(),
        other => panic!("{}.{} is {other:?}, which the CRI does not use", owner.name(), field.name()),
    };
    if field.label() != Label::Repeated {
        return single;
    }
    let entry = owner
        .nested_type
        .iter()
        .find(|nested| is_map_entry(nested) && single == format!("{}.{}", owner.name(), nested.name()));
    match entry {
        Some(entry) => {
            let parts: Vec<_> = entry.field.iter().map(|part| type_of(entry, part)).collect();
            format!("map<{}>", parts.join(", "))
        }
        None => format!("repeated {single}"),
    }
}

#[test]
fn every_fact_is_compiled_and_nothing_else() {
    let (written, compiled) = (written(), compiled());
    let missing: Vec<_> = written.difference(&compiled).collect();
    let extra: Vec<_> = compiled.difference(&written).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing in the proto: {missing:#?}\nnot in facts.tsv: {extra:#?}"
    );
}

#[test]
fn there_are_two_services_with_43_rpcs() {
    let rpcs: Vec<_> = compiled().into_iter().filter(|line| line.starts_with("rpc\t")).collect();
    let services: BTreeSet<_> = rpcs.iter().filter_map(|line| line.split('\t').nth(1)).collect();
    assert_eq!(services, BTreeSet::from(["ImageService", "RuntimeService"]));
    assert_eq!(rpcs.len(), 43);
}

#[test]
fn a_config_survives_the_disk_and_old_files_are_read() {
    use berth_proto::v1::PodSandboxConfig;
    let config = PodSandboxConfig {
        hostname: "web".to_owned(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        ..PodSandboxConfig::default()
    };
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<PodSandboxConfig>(&text).unwrap(), config);
    let old: PodSandboxConfig = serde_json::from_str(r#"{"hostname":"web"}"#).unwrap();
    assert_eq!(old, PodSandboxConfig { hostname: "web".to_owned(), ..PodSandboxConfig::default() });
}
