//! `reprise rpc`: one call to a running target (JSON-RPC 2.0 over its socket, without framing), its answer printed.

use crate::Failure;
use crate::arguments::Rpc;
use serde_json::{Map, Value, json};
use std::io::{BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// How long a target that is not there is taken for one that is just starting, and how often it is looked for.
const START_MAX: Duration = Duration::from_secs(1);
const START_LOOK: Duration = Duration::from_millis(10);

/// Makes the call.
pub(crate) fn run(arguments: &Rpc) -> Result<(), Failure> {
    let parameters = read_parameters(&arguments.parameters).map_err(Failure::bad_input)?;
    let answer = call(arguments, parameters)?;
    if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
        let message = error.get("message").and_then(Value::as_str).unwrap_or("an error without a message");
        let code = error.get("code").and_then(Value::as_i64).unwrap_or(0);
        return Err(Failure::refused(format!("{}: {message} (code {code})", arguments.method)));
    }
    let result = answer.get("result").unwrap_or(&Value::Null);
    let text = serde_json::to_string_pretty(result).expect("what was read as JSON is written as JSON");
    match writeln!(std::io::stdout(), "{text}") {
        // Whoever closes the pipe has read enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::refused(format!(
            "{}: it is done, and the answer cannot be written: {error}",
            arguments.method
        ))),
        _ => Ok(()),
    }
}

/// Connects to a target, which may be beginning: its socket is there, and answers, when it serves.
#[expect(
    clippy::disallowed_methods,
    reason = "a command line has no reactor; nothing tells of a socket to come"
)]
fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let asked = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                    && asked.elapsed() < START_MAX =>
            {
                std::thread::sleep(START_LOOK);
            }
            connected => return connected,
        }
    }
}

/// Sends the request and reads the answer.
fn call(arguments: &Rpc, parameters: Map<String, Value>) -> Result<Value, Failure> {
    let path = arguments.rpc_socket.display();
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::refused(format!("cannot {what} the target at {path}: {error}"))
    };
    let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": arguments.method});
    if !parameters.is_empty() {
        request["params"] = parameters.into();
    }
    let timeout = Duration::from_secs(arguments.timeout);
    let mut stream = connect(&arguments.rpc_socket).map_err(|error| failed("connect to", &error))?;
    let limited = stream.set_read_timeout(Some(timeout)).and(stream.set_write_timeout(Some(timeout)));
    limited.map_err(|error| failed("speak to", &error))?;
    let asked = Instant::now();
    stream.write_all(request.to_string().as_bytes()).map_err(|error| failed("send to", &error))?;
    let mut answers = serde_json::Deserializer::from_reader(BufReader::new(stream.take(ANSWER_BYTES_MAX)))
        .into_iter::<Value>();
    match answers.next() {
        Some(Ok(answer)) if answer.get("id") == Some(&json!(1)) => Ok(answer),
        // An error for what could not be told apart has no id.
        Some(Ok(answer)) if answer.get("error").is_some() => Ok(answer),
        Some(Ok(answer)) => Err(failed("understand", &format!("it answers {answer}"))),
        Some(Err(_)) if asked.elapsed() >= timeout => {
            Err(failed("wait for", &format!("no answer within {} s", arguments.timeout)))
        }
        Some(Err(error)) => Err(failed("understand", &error)),
        None => Err(failed("hear from", &"it closed the connection without an answer")),
    }
}

/// The parameters of `key=value` words.
fn read_parameters(words: &[String]) -> Result<Map<String, Value>, String> {
    let mut parameters = Map::new();
    for word in words {
        let Some((key, text)) = word.split_once('=') else {
            return Err(format!("parameter {word:?} has no value: give key=value"));
        };
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
        insert(&mut parameters, key, value).ok_or_else(|| {
            format!("parameter {word:?}: the key is empty, given twice, or inside of what is no object")
        })?;
    }
    Ok(parameters)
}

/// Puts a value at a dotted key.
fn insert(object: &mut Map<String, Value>, key: &str, value: Value) -> Option<()> {
    match key.split_once('.') {
        _ if key.is_empty() => None,
        None => object.insert(key.into(), value).is_none().then_some(()),
        Some((outer, inner)) if !outer.is_empty() => {
            let inside = object.entry(outer).or_insert_with(|| Map::new().into());
            insert(inside.as_object_mut()?, inner, value)
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Value, String> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        read_parameters(&words).map(Value::from)
    }

    #[test]
    fn values_are_json_or_else_text() {
        let words = [
            "n=42",
            "t=Malloc0",
            "b=true",
            "q=\"42\"",
            "l=[1,\"a\"]",
            "e=",
            "eq=a=b",
            "p=/dev/vda",
            "z=null",
        ];
        let expected = json!({
            "n": 42, "t": "Malloc0", "b": true, "q": "42", "l": [1, "a"], "e": "", "eq": "a=b", "p": "/dev/vda", "z": null
        });
        assert_eq!(read(&words), Ok(expected));
    }

    #[test]
    fn dots_nest() {
        assert_eq!(read(&["a.b=1", "a.c.d=x", "e=2"]), Ok(json!({"a": {"b": 1, "c": {"d": "x"}}, "e": 2})));
        assert_eq!(read(&["a={\"b\":1}", "a.c=2"]), Ok(json!({"a": {"b": 1, "c": 2}})));
    }

    #[test]
    fn what_is_no_parameter_is_refused() {
        for bad in [
            &["a"][..],
            &["=1"],
            &["a=1", "a=2"],
            &["a=1", "a.b=2"],
            &["a.=1"],
            &[".a=1"],
            &["a.b=1", "a.b=2"],
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.starts_with("parameter "), "{bad:?}: {error}");
        }
    }
}
