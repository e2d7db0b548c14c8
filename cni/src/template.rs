//! Templates of conflists with placeholders for the pod subnets, in the form of containerd's `conf_template`: the part
//! of Go's text/template that such files use.
//!
//! `{{.PodCIDR}}` is the first subnet, `.PodCIDRRanges` is the list of all subnets, `.Routes` is the list of the
//! default routes of their families. `{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet":
//! "{{$range}}"}]{{end}}` iterates over them.

use std::collections::HashMap;

use ipnet::IpNet;

/// Renders a template.
///
/// # Errors
/// An unsupported action. The error contains its text.
pub(crate) fn render(template: &str, subnets: &[IpNet]) -> Result<String, String> {
    let tokens = tokens(template)?;
    let (nodes, rest) = parse(&tokens, false)?;
    if !rest.is_empty() {
        return Err("unexpected {{end}} or {{else}}".to_owned());
    }
    let mut routes = Vec::new();
    for subnet in subnets {
        let route = if subnet.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        if !routes.contains(&route.to_owned()) {
            routes.push(route.to_owned());
        }
    }
    let all: Vec<String> = subnets.iter().map(ToString::to_string).collect();
    let scope = Scope {
        first: all.first().cloned().unwrap_or_default(),
        all,
        routes,
        variables: HashMap::new(),
        dot: None,
    };
    let mut text = String::new();
    write(&nodes, &scope, &mut text)?;
    Ok(text)
}

#[derive(Debug)]
enum Token<'a> {
    Text(&'a str),
    Action(&'a str),
}

fn tokens(mut rest: &str) -> Result<Vec<Token<'_>>, String> {
    let mut tokens = Vec::new();
    let mut trim = false;
    loop {
        let (text, tail) = match rest.split_once("{{") {
            Some((text, tail)) => (text, Some(tail)),
            None => (rest, None),
        };
        let text = if trim { text.trim_start() } else { text };
        let Some(tail) = tail else {
            tokens.push(Token::Text(text));
            return Ok(tokens);
        };
        let (action, after) = tail.split_once("}}").ok_or("{{ without }}")?;
        // `{{-` and `-}}` remove the adjacent whitespace.
        let (text, action) = match action.strip_prefix("- ") {
            Some(action) => (text.trim_end(), action),
            None => (text, action),
        };
        let action = match action.strip_suffix(" -") {
            Some(action) => {
                trim = true;
                action
            }
            None => {
                trim = false;
                action
            }
        };
        tokens.extend([Token::Text(text), Token::Action(action.trim())]);
        rest = after;
    }
}

#[derive(Debug)]
enum Node<'a> {
    Text(&'a str),
    Value(&'a str),
    Range { index: Option<&'a str>, value: Option<&'a str>, list: &'a str, body: Vec<Node<'a>> },
    If { value: &'a str, then: Vec<Node<'a>>, otherwise: Vec<Node<'a>> },
}

/// Parses up to the end of a block. The rest starts with its `end` or `else`.
fn parse<'a, 't>(
    mut tokens: &'t [Token<'a>],
    inside: bool,
) -> Result<(Vec<Node<'a>>, &'t [Token<'a>]), String> {
    let mut nodes = Vec::new();
    while let Some((token, rest)) = tokens.split_first() {
        let action = match token {
            Token::Text(text) => {
                nodes.push(Node::Text(text));
                tokens = rest;
                continue;
            }
            Token::Action(action) => *action,
        };
        match action.split_whitespace().next() {
            Some("end" | "else") if inside => return Ok((nodes, tokens)),
            Some("end" | "else") => return Err(format!("unexpected {{{{{action}}}}}")),
            Some("range") => {
                let (index, value, list) = range(action.trim_start_matches("range").trim());
                let (body, after) = parse(rest, true)?;
                nodes.push(Node::Range { index, value, list, body });
                tokens = end_of(after, "range")?;
            }
            Some("if") => {
                let (then, after) = parse(rest, true)?;
                let (otherwise, after) = match after.first() {
                    Some(Token::Action("else")) => parse(after.get(1..).unwrap_or_default(), true)?,
                    _ => (Vec::new(), after),
                };
                let value = action.trim_start_matches("if").trim();
                nodes.push(Node::If { value, then, otherwise });
                tokens = end_of(after, "if")?;
            }
            Some(comment) if comment.starts_with("/*") => tokens = rest,
            _ => {
                nodes.push(Node::Value(action));
                tokens = rest;
            }
        }
    }
    if inside { Err("a block without {{end}}".to_owned()) } else { Ok((nodes, tokens)) }
}

fn end_of<'a, 't>(tokens: &'t [Token<'a>], of: &str) -> Result<&'t [Token<'a>], String> {
    match tokens.split_first() {
        Some((Token::Action("end"), rest)) => Ok(rest),
        _ => Err(format!("{{{{{of}}}}} without {{{{end}}}}")),
    }
}

/// Parses `$i, $v := .List`, `$v := .List` or `.List`.
fn range(text: &str) -> (Option<&str>, Option<&str>, &str) {
    match text.split_once(":=") {
        None => (None, None, text),
        Some((names, list)) => match names.split_once(',') {
            Some((index, value)) => (Some(index.trim()), Some(value.trim()), list.trim()),
            None => (None, Some(names.trim()), list.trim()),
        },
    }
}

#[derive(Clone, Debug)]
struct Scope {
    first: String,
    all: Vec<String>,
    routes: Vec<String>,
    variables: HashMap<String, String>,
    dot: Option<String>,
}

impl Scope {
    fn list(&self, name: &str) -> Result<&[String], String> {
        match name {
            ".PodCIDRRanges" | "$.PodCIDRRanges" => Ok(&self.all),
            ".Routes" | "$.Routes" => Ok(&self.routes),
            other => Err(format!("{other:?} is not a list")),
        }
    }

    fn value(&self, name: &str) -> Result<String, String> {
        match name {
            ".PodCIDR" | "$.PodCIDR" => Ok(self.first.clone()),
            "." => self.dot.clone().ok_or_else(|| "{{.}} outside a range".to_owned()),
            name if name.starts_with('$') => {
                self.variables.get(name).cloned().ok_or_else(|| format!("{name} is not defined"))
            }
            other => Err(format!("unknown value {{{{{other}}}}}")),
        }
    }
}

fn write(nodes: &[Node<'_>], scope: &Scope, text: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(part) => text.push_str(part),
            Node::Value(name) => text.push_str(&scope.value(name)?),
            Node::Range { index, value, list, body } => {
                for (place, item) in scope.list(list)?.iter().enumerate() {
                    let mut inner = Scope { dot: Some(item.clone()), ..scope.clone() };
                    if let Some(index) = index {
                        inner.variables.insert((*index).to_owned(), place.to_string());
                    }
                    if let Some(value) = value {
                        inner.variables.insert((*value).to_owned(), item.clone());
                    }
                    write(body, &inner, text)?;
                }
            }
            Node::If { value, then, otherwise } => {
                // Empty text and zero are false.
                let condition = match scope.list(value) {
                    Ok(list) => !list.is_empty(),
                    Err(_) => !matches!(scope.value(value)?.as_str(), "" | "0"),
                };
                write(if condition { then } else { otherwise }, scope, text)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_containerds_documentation_is_rendered() {
        let template = r#"{"ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
            "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}], "first": "{{.PodCIDR}}"}"#;
        let subnets = ["10.1.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let value: serde_json::Value = serde_json::from_str(&render(template, &subnets).unwrap()).unwrap();
        let expected = serde_json::json!({
            "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00::/64" }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            "first": "10.1.0.0/24",
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn other_forms() {
        let subnets = ["10.1.0.0/24".parse().unwrap()];
        let rendered = |template: &str| render(template, &subnets);
        assert_eq!(rendered("a {{- .PodCIDR -}} b").unwrap(), "a10.1.0.0/24b");
        assert_eq!(rendered("{{range .Routes}}<{{.}}>{{end}}").unwrap(), "<0.0.0.0/0>");
        assert_eq!(rendered("{{if .Routes}}yes{{else}}no{{end}}{{/* nothing */}}").unwrap(), "yes");
        for wrong in [
            "{{.Nothing}}",
            "{{range .PodCIDRRanges}}",
            "{{end}}",
            "{{",
            "{{range .X}}{{end}}",
            "{{$x}}",
            "{{.}}",
        ] {
            assert!(rendered(wrong).is_err(), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in "(\\{\\{|\\}\\}|range|if|end|else| |\\.|\\$i|:=|[a-z]){0,20}") {
            let _result = render(&text, &["10.1.0.0/24".parse().unwrap()]);
        }
    }
}
