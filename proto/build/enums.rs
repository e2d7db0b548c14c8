//! Generates, for each message that a request can contain, a check that its enum values are defined. prost decodes an enum
//! field into any number, and reads an undefined number as the first value of the enum.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use heck::{ToSnakeCase, ToUpperCamelCase};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// The packages, and the module of the generated code for each of them.
const MODULES: [(&str, &str); 2] = [(".runtime.v1.", "v1"), (".berth.v1.", "admin")];

/// Generates the source of all implementations of `crate::enums::Known`.
///
/// # Errors
/// The protos contain a construct that this generator cannot check.
pub(crate) fn generate(set: &FileDescriptorSet) -> Result<String, String> {
    let messages = messages(set);
    let requests = requests(set, &messages);
    let mut source = String::new();
    for (name, message) in &messages {
        let body = if requests.contains(name) { checks(message, &messages)? } else { "Ok(())".to_owned() };
        let path = rust_path(name)?;
        let implementation = format!(
            "impl crate::enums::Known for {path} {{\n    fn check(&self) -> Result<(), crate::enums::Unknown> {{\n        {body}\n    }}\n}}\n"
        );
        source.push_str(&implementation);
    }
    Ok(source)
}

type Messages<'a> = BTreeMap<String, &'a DescriptorProto>;

/// Returns all messages by their full names, without the entry messages of maps.
fn messages(set: &FileDescriptorSet) -> Messages<'_> {
    let mut found = BTreeMap::new();
    for file in &set.file {
        for message in &file.message_type {
            add(&format!(".{}.", file.package()), message, &mut found);
        }
    }
    found.retain(|name, message| {
        let is_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
        !is_entry && MODULES.iter().any(|(package, _)| name.starts_with(package))
    });
    found
}

fn add<'a>(scope: &str, message: &'a DescriptorProto, found: &mut Messages<'a>) {
    let name = format!("{scope}{}", message.name());
    for nested in &message.nested_type {
        add(&format!("{name}."), nested, found);
    }
    found.insert(name, message);
}

/// Returns the names of the messages that a server receives, and of the messages in them.
fn requests(set: &FileDescriptorSet, messages: &Messages<'_>) -> BTreeSet<String> {
    let services = set.file.iter().flat_map(|file| &file.service);
    let mut pending: Vec<String> =
        services.flat_map(|service| &service.method).map(|method| method.input_type().to_owned()).collect();
    let mut found = BTreeSet::new();
    while let Some(name) = pending.pop() {
        if let Some(message) = messages.get(&name)
            && found.insert(name)
        {
            let fields = message.field.iter().filter(|field| field.r#type() == Type::Message);
            pending.extend(fields.map(|field| field.type_name().to_owned()));
        }
    }
    found
}

fn checks(message: &DescriptorProto, messages: &Messages<'_>) -> Result<String, String> {
    if !message.oneof_decl.is_empty() {
        return Err(format!("failed to generate checks for {}: oneof is not supported", message.name()));
    }
    let mut body = String::new();
    for field in &message.field {
        if let Some(check) = check(field, message, messages)? {
            writeln!(body, "{check}?;").map_err(|error| error.to_string())?;
        }
    }
    body.push_str("Ok(())");
    Ok(body)
}

fn check(
    field: &FieldDescriptorProto,
    message: &DescriptorProto,
    messages: &Messages<'_>,
) -> Result<Option<String>, String> {
    let (name, repeated) = (field.name(), field.label() == Label::Repeated);
    let member = match name.to_snake_case().as_str() {
        "type" => "r#type".to_owned(),
        other => other.to_owned(),
    };
    Ok(match field.r#type() {
        Type::Message if messages.contains_key(field.type_name()) => Some(match repeated {
            true => format!("crate::enums::all({name:?}, &self.{member})"),
            false => format!("crate::enums::one({name:?}, self.{member}.as_ref())"),
        }),
        Type::Message => {
            let entry = message.nested_type.iter().find(|nested| field.type_name().ends_with(nested.name()));
            let plain = |value: &FieldDescriptorProto| !matches!(value.r#type(), Type::Message | Type::Enum);
            if !entry.is_some_and(|entry| entry.field.iter().all(plain)) {
                return Err(format!(
                    "failed to generate a check for {name} of {}: unsupported type",
                    message.name()
                ));
            }
            None
        }
        Type::Enum => {
            let kind = rust_path(field.type_name())?;
            let word = field.type_name().rsplit('.').next().unwrap_or_default();
            if repeated {
                return Err(format!(
                    "failed to generate a check for {name} of {}: lists of enums are not supported",
                    message.name()
                ));
            }
            Some(format!("crate::enums::value::<{kind}>({name:?}, {word:?}, self.{member})"))
        }
        _ => None,
    })
}

/// Returns the path of a type in the generated code. A type that is nested in a message is in a module with the message's
/// name.
fn rust_path(name: &str) -> Result<String, String> {
    let found = MODULES.iter().find_map(|(package, module)| Some((name.strip_prefix(package)?, module)));
    let (local, module) = found.ok_or_else(|| format!("package of {name} not found"))?;
    let (scope, last) = local.rsplit_once('.').unwrap_or(("", local));
    let scopes =
        scope.split('.').filter(|part| !part.is_empty()).map(|part| format!("{}::", part.to_snake_case()));
    Ok(format!("crate::{module}::{}{}", scopes.collect::<String>(), last.to_upper_camel_case()))
}
