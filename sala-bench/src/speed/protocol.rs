//! How the program talks to the processes that it times: a line at a time, both ways.
//!
//! ```text
//! worker:   {"version": "…", "parameters": 11173962, "start_mib": 60.1}      built and warm
//! program:  go                                                               as often as wanted
//! worker:   {"forward_ms": [215.0], "step_ms": [690.2], "loss": 2.3, "peak_mib": 700.4}
//! ```
//!
//! A worker ends when its input does. Each has a process of its own, so that its peak memory is its own,
//! and waits while the others work.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What the program says for a round.
pub(super) const GO: &str = "go";

/// What a worker says first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// What computes, and which version of it.
    pub(crate) version: String,
    /// Trained numbers of the network.
    pub(crate) parameters: usize,
    /// Memory in use before the network was made, libraries included; where the system says it.
    pub(crate) start_mib: Option<f64>,
}

/// One round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Round {
    /// Milliseconds of each forward pass, loss included.
    pub(crate) forward_ms: Vec<f64>,
    /// Milliseconds of each step: forward, backward and SGD.
    pub(crate) step_ms: Vec<f64>,
    /// The last step's.
    pub(crate) loss: f64,
    /// The most memory that the process has ever used.
    pub(crate) peak_mib: Option<f64>,
}

/// A process that answers in lines. It ends when this is dropped.
pub(super) struct Worker {
    name: String,
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts the command; what it writes to its standard error is shown.
    pub(super) fn start(name: &str, command: &mut Command) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let (requests, answers) = (process.stdin.take(), process.stdout.take());
        Ok(Self {
            name: name.to_owned(),
            process,
            requests: requests.context("no standard input")?,
            answers: BufReader::new(answers.context("no standard output")?),
        })
    }

    /// Waits for its next line.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        let length = read.with_context(|| format!("cannot hear {}", self.name))?;
        ensure!(length > 0, "{} ended before it answered", self.name);
        parse(&line).with_context(|| format!("{} answered", self.name))
    }

    /// Asks for a round and waits for it.
    pub(super) fn go<T: DeserializeOwned>(&mut self) -> Result<T> {
        writeln!(self.requests, "{GO}")
            .and_then(|()| self.requests.flush())
            .with_context(|| format!("{} has ended", self.name))?;
        self.hear()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself, and there is nobody to tell.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn parse<T: DeserializeOwned>(line: &str) -> Result<T> {
    let line = line.trim();
    serde_json::from_str(line).with_context(|| format!("`{line}`"))
}

/// A worker's side: says `hello`, then a round for every [`GO`] until the input ends.
pub(super) fn serve<T: Serialize>(
    hello: Option<&Hello>,
    input: impl BufRead,
    mut output: impl Write,
    mut round: impl FnMut() -> Result<T>,
) -> Result<()> {
    let mut say = |line: String| -> Result<()> {
        writeln!(output, "{line}")?;
        Ok(output.flush()?)
    };
    if let Some(hello) = hello {
        say(serde_json::to_string(hello)?)?;
    }
    for line in input.lines() {
        match line?.trim() {
            GO => say(serde_json::to_string(&round()?)?)?,
            other => bail!("wanted `{GO}`, got `{other}`"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            version: "candle 0.11.1".into(),
            parameters: 7,
            start_mib: None,
        }
    }

    #[test]
    fn a_worker_says_hello_and_a_round_for_every_go() {
        let mut output = vec![];
        let mut rounds = 0;
        let round = || {
            rounds += 1;
            Ok(Round {
                forward_ms: vec![0.1],
                step_ms: vec![f64::from(rounds)],
                loss: 2.5,
                peak_mib: Some(10.0),
            })
        };
        serve(Some(&hello()), &b"go\ngo\n"[..], &mut output, round).unwrap();
        let text = String::from_utf8(output).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(parse::<Hello>(lines[0]).unwrap(), hello());
        assert_eq!(parse::<Round>(lines[2]).unwrap().step_ms, [2.0]);
    }

    #[test]
    fn other_words_and_answers_are_refused_and_quoted() {
        let never = || -> Result<Round> { bail!("no round") };
        let error = serve(None, &b"stop\n"[..], vec![], never).unwrap_err();
        assert!(error.to_string().contains("`stop`"), "{error}");
        let error = parse::<Round>("Traceback\n").unwrap_err();
        assert!(error.to_string().contains("`Traceback`"), "{error}");
    }

    #[test]
    fn a_process_that_ends_is_an_error_with_its_name() {
        let mut worker = Worker::start("nobody", &mut Command::new("true")).unwrap();
        let error = worker.hear::<Hello>().unwrap_err();
        assert!(error.to_string().contains("nobody ended"), "{error}");
    }
}
