//! A closed reading of JSON Schema: as much of it as the schemas in `docker/schemas` use, and a panic
//! at anything else, so that no rule is passed over. It is small, and it is all that a crate of thirty
//! others would be used for.

use serde_json::{Map, Value};

/// What is wrong with `value`; the place of each problem begins with `place`.
pub(super) fn problems(root: &Value, schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let Value::Object(rules) = schema else { panic!("{place}: a schema is an object: {schema}") };
    let check = Check { root, place };
    rules.iter().flat_map(|(rule, wanted)| check.rule(rules, rule, wanted, value)).collect()
}

struct Check<'a> {
    root: &'a Value,
    place: &'a str,
}

impl Check<'_> {
    fn rule(
        &self,
        rules: &Map<String, Value>,
        rule: &str,
        wanted: &Value,
        value: &Value,
    ) -> Vec<String> {
        match rule {
            "$defs" | "kinds" => Vec::new(),
            "$ref" => problems(self.root, self.referred(wanted), value, self.place),
            "properties" => members(value)
                .filter_map(|(key, value)| Some((wanted.get(key)?, value, key)))
                .flat_map(|(schema, value, key)| self.below(schema, value, key))
                .collect(),
            "patternProperties" => members(value)
                .flat_map(|(key, value)| matching(wanted, key).map(move |of| (of, value, key)))
                .flat_map(|(schema, value, key)| self.below(schema, value, key))
                .collect(),
            "additionalProperties" => members(value)
                .filter(|(key, _)| is_additional(rules, key))
                .flat_map(|(key, value)| match wanted {
                    Value::Bool(true) => Vec::new(),
                    Value::Bool(false) => vec![format!("{}: there is no `{key}`", self.place)],
                    schema => self.below(schema, value, key),
                })
                .collect(),
            "required" => texts(wanted)
                .filter(|key| value.is_object() && value.get(key).is_none())
                .map(|key| format!("{}: `{key}` is missing", self.place))
                .collect(),
            "items" => (0..)
                .zip(value.as_array().into_iter().flatten())
                .flat_map(|(at, item): (usize, _)| self.below(wanted, item, &at.to_string()))
                .collect(),
            "allOf" => wanted
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|schema| problems(self.root, schema, value, self.place))
                .collect(),
            _ => {
                let problem = self.of_value(rule, wanted, value);
                problem.map(|problem| format!("{}: {problem}", self.place)).into_iter().collect()
            }
        }
    }

    /// Rules about the value itself, and not about what is in it.
    fn of_value(&self, rule: &str, wanted: &Value, value: &Value) -> Option<String> {
        let branches = || wanted.as_array().into_iter().flatten();
        let fits = |schema: &&Value| problems(self.root, schema, value, self.place).is_empty();
        let (holds, problem) = match rule {
            "type" => (has_type(wanted, value), format!("{value} is no {wanted}")),
            "enum" => (branches().any(|of| of == value), format!("{value} is not of {wanted}")),
            "oneOf" => {
                (branches().filter(fits).count() == 1, format!("{value} fits none, or several"))
            }
            "anyOf" => (branches().any(|schema| fits(&schema)), format!("{value} fits none")),
            "uniqueItems" => {
                let items = value.as_array().map_or(&[][..], Vec::as_slice);
                let twice = items.iter().enumerate().find(|(at, item)| items[..*at].contains(item));
                (twice.is_none(), format!("{twice:?} is there twice"))
            }
            "minimum" | "maximum" => {
                let (bound, number) = (wanted.as_f64(), value.as_f64());
                let within = if rule == "minimum" { number >= bound } else { number <= bound };
                (number.is_none() || within, format!("{value} is past {wanted}"))
            }
            "format" if wanted == "quantity" => {
                (is_quantity(value), format!("{value} is no quantity such as 512Mi or 250m"))
            }
            _ => panic!("the schema has a rule that is not known here: {rule}: {wanted}"),
        };
        (!holds).then_some(problem)
    }

    fn below(&self, schema: &Value, value: &Value, key: &str) -> Vec<String> {
        problems(self.root, schema, value, &format!("{}.{key}", self.place))
    }

    fn referred(&self, reference: &Value) -> &Value {
        let path = reference.as_str().and_then(|text| text.strip_prefix('#')).unwrap_or_default();
        self.root.pointer(path).unwrap_or_else(|| panic!("the schema has no {reference}"))
    }
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

/// The patterns that the schemas have, and no engine for others.
fn matching<'a>(patterns: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    members(patterns).filter_map(move |(pattern, schema)| {
        let every = |of: fn(u8) -> bool| !key.is_empty() && key.bytes().all(of);
        let matches = match pattern {
            "^x-" => key.starts_with("x-"),
            ".+" | "^.+$" => !key.is_empty(),
            "^[a-z]+$" => every(|byte| byte.is_ascii_lowercase()),
            "^[a-zA-Z0-9._-]+$" => {
                every(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            }
            _ => panic!("the schema has a pattern that is not known here: {pattern}"),
        };
        matches.then_some(schema)
    })
}

fn is_additional(rules: &Map<String, Value>, key: &str) -> bool {
    let named = rules.get("properties").is_some_and(|of| of.get(key).is_some());
    let patterned =
        rules.get("patternProperties").is_some_and(|of| matching(of, key).next().is_some());
    !named && !patterned
}

fn has_type(wanted: &Value, value: &Value) -> bool {
    match wanted {
        Value::Array(types) => types.iter().any(|wanted| has_type(wanted, value)),
        Value::String(name) => match name.as_str() {
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "object" => value.is_object(),
            "array" => value.is_array(),
            "null" => value.is_null(),
            _ => panic!("the schema has a type that is not known here: {name}"),
        },
        _ => panic!("a type is a text or a list: {wanted}"),
    }
}

/// Kubernetes' amounts: digits, perhaps with a point, and a suffix.
fn is_quantity(value: &Value) -> bool {
    let Some(text) = value.as_str() else { return value.is_u64() };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &text[digits.len()..];
    let known = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    digits.parse::<f64>().is_ok() && !digits.starts_with(['-', '+', '.']) && known.contains(&suffix)
}
