//! The program in the built-in image of `berth demo`. It is also a useful container for tests: an image with this one
//! static file needs no shell, no libraries and no network.
//!
//! * [`mod@serve`]: an HTTP server
//! * [`fetch`]: an HTTP client
//! * [`request`]: the head of an HTTP message, for both
//! * [`signals`]: termination as PID 1

mod fetch;
mod request;
mod serve;
mod signals;

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: berth-demo-app COMMAND
  serve PORT [TEXT]  serve HTTP: / answers TEXT, /env the environment, /healthz ok
  fetch URL          print the body of URL; exit code 0 for a 2xx, 3, 4 or 5 for the other classes, 1 for no answer
  env                print the environment
  echo [TEXT...]     print the texts
  cat [FILE...]      print the files, or standard input
  sleep [SECONDS]    wait, by default until SIGTERM
  exit CODE          exit with the code
";

/// The exit code of a wrong command line, as in a shell's builtins.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> =
        env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match *arguments.as_slice() {
        ["serve", port] => serve(port, "hello from berth"),
        ["serve", port, text] => serve(port, text),
        ["fetch", url] => fetch::run(url),
        ["env"] => done(io::stdout().write_all(environment().as_bytes())),
        ["echo", ref texts @ ..] => done(writeln!(io::stdout(), "{}", texts.join(" "))),
        ["cat", ref files @ ..] => done(cat(files)),
        ["sleep"] => sleep(None),
        ["sleep", seconds] => sleep(Some(seconds)),
        ["exit", code] => return code.parse::<u8>().map_or_else(|_| usage(), ExitCode::from),
        _ => return usage(),
    };
    result.unwrap_or_else(|error| {
        print_error(&error);
        ExitCode::FAILURE
    })
}

/// Prints a message on standard error. An error of this write is ignored.
fn print_error(what: &dyn std::fmt::Display) {
    drop(writeln!(io::stderr(), "berth-demo-app: {what}"));
}

fn usage() -> ExitCode {
    drop(io::stderr().write_all(USAGE.as_bytes()));
    ExitCode::from(WRONG_USAGE)
}

fn done(result: io::Result<()>) -> io::Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

fn serve(port: &str, text: &str) -> io::Result<ExitCode> {
    let Ok(port) = port.parse() else { return Ok(usage()) };
    signals::end_on_sigterm()?;
    serve::run(port, text)
}

fn sleep(seconds: Option<&str>) -> io::Result<ExitCode> {
    let duration = match seconds.map(|text| text.parse().map(Duration::try_from_secs_f64)) {
        None => None,
        Some(Ok(Ok(duration))) => Some(duration),
        Some(_) => return Ok(usage()),
    };
    signals::end_on_sigterm()?;
    match duration {
        Some(duration) => std::thread::sleep(duration),
        None => loop {
            std::thread::park();
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the environment with one `NAME=value` per line.
fn environment() -> String {
    env::vars_os().fold(String::new(), |text, (name, value)| {
        text + &format!("{}={}\n", name.to_string_lossy(), value.to_string_lossy())
    })
}

fn cat(files: &[&str]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    if files.is_empty() {
        io::copy(&mut io::stdin().lock(), &mut output)?;
    }
    for file in files {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{file}: {error}"));
        let mut file = File::open(file).map_err(named)?;
        io::copy(&mut file, &mut output).map_err(named)?;
    }
    output.flush()
}
