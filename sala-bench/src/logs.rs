//! What the program says of its inner workings: log lines on standard error, and a trace on request.
//!
//! `RUST_LOG` chooses what is logged (`debug`, `sala_core=debug,warn`, …), `warn` unless it is set.

use std::{
    fs::File,
    io::{self, IsTerminal, Write, stderr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use tracing::Level;
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::{
    EnvFilter, Layer, filter::Targets, fmt::format::FmtSpan, layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::progress;

/// Crates whose spans a trace has.
const TRACED: [&str; 3] = ["sala_core", "sala_models", "sala_bench"];

/// How the program logs; the same for all commands.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// Form of the log lines on standard error
    #[arg(long, value_enum, global = true, default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Write what took how long to a file that Chrome and Perfetto show
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) trace: Option<PathBuf>,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    /// One JSON object a line.
    Json,
}

/// Begins to log; JSON lines hold what is said of progress too. What is returned completes the trace when it is dropped.
///
/// # Errors
/// When `RUST_LOG` cannot be understood or the trace cannot be written.
pub(crate) fn begin(args: &LogArgs) -> Result<Option<FlushGuard>> {
    let lines = tracing_subscriber::fmt::layer()
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(|| AboveBars);
    let lines = match args.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let (trace, guard) = match &args.trace {
        None => (None, None),
        Some(path) => {
            let (layer, guard) = ChromeLayerBuilder::new()
                .writer(TraceFile::create(path)?)
                .include_args(true)
                .include_locations(false)
                .build();
            let spans = TRACED.map(|name| (name, Level::DEBUG));
            let layer = layer.with_filter(Targets::new().with_targets(spans));
            (Some(layer), Some(guard))
        }
    };
    let mut filter = filter()?;
    if args.log_format == LogFormat::Json {
        filter = filter.add_directive(format!("{}=info", progress::TARGET).parse()?);
        progress::for_machines();
    }
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(trace)
        .init();
    Ok(guard)
}

fn filter() -> Result<EnvFilter> {
    match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text)
            .with_context(|| format!("RUST_LOG cannot be understood: `{text}`")),
        _ => Ok(EnvFilter::new("warn")),
    }
}

/// Standard error, with progress bars making way.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        progress::above(|| stderr().write_all(bytes)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        stderr().flush()
    }
}

/// The file of a trace. A run must not end because a trace cannot be written: after the first error, which is
/// told, the rest is dropped.
struct TraceFile {
    file: Option<File>,
    path: PathBuf,
}

impl TraceFile {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path)
            .with_context(|| format!("cannot write the trace {}", path.display()))?;
        Ok(Self {
            file: Some(file),
            path: path.into(),
        })
    }
}

impl Write for TraceFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(Err(error)) = self.file.as_mut().map(|file| file.write_all(bytes)) {
            self.file = None;
            let path = self.path.display();
            let warning = format_args!("warning: the trace {path} is not complete: {error}");
            progress::line_above(warning);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
