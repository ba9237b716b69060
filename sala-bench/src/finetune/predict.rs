//! `predict`: what a trained model says of new texts or images.

use std::{
    fs,
    io::{self, BufRead, BufWriter, IsTerminal, Write},
    ops::Range,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{D, DType, Device};
use indicatif::ProgressBar;
use sala_models::{
    Mode,
    ops::softmax,
    pretrained::{Built, Task},
};
use serde_json::{Map, Value, json};

use crate::{
    data::files,
    progress::{self, Pulse},
    train::scalar,
};

use super::{
    args::{Format, PredictArgs},
    data::{
        self, Blocks, Examples, Texts, batches,
        table::{self, Columns},
    },
    model::Model,
    objective,
    run::SPEC,
    spec::FineTune,
};

/// Tokens that a text is cut to by a model that does not say what it was trained with.
const USUAL_LENGTH: usize = 512;

/// Batches that are predicted before any of them is written. Texts are sorted by length among them, so that little
/// is filled up.
const BATCHES_AT_ONCE: usize = 16;

/// Prints a line for each example of the input, in its order.
pub(crate) fn predict(args: &PredictArgs) -> Result<()> {
    args.precision.check(args.device)?;
    let on = (&args.device.open()?, args.precision.dtype());
    args.precision.apply();
    let model = Model::open_trained(&args.model)?;
    let input = match model.task() {
        Task::ImageClassification => images(args, &model)?,
        _ => texts(args, &model)?,
    };
    let (_, network, report) = model.network(0, on.0, on.1)?;
    ensure!(
        report.fresh.is_empty(),
        "the model {} is not trained: it lacks {}",
        args.model,
        report.fresh.join(", ")
    );
    let out = Output::new(
        args.format,
        &model,
        input.lines.is_some(),
        io::stdout().lock(),
    );
    let predict = |places: Range<usize>| match model.task() {
        Task::CausalLm => losses(&network, &input.examples, places, on),
        _ => probabilities(&network, &input.examples, places, args.batch_size.get(), on),
    };
    write_all(
        &input,
        args.batch_size.get().saturating_mul(BATCHES_AT_ONCE),
        predict,
        out,
    )
}

/// What is predicted for.
struct Input {
    /// What stands beside each prediction.
    names: Vec<String>,
    /// The line of each text, from 1, where the input is lines.
    lines: Option<Vec<usize>>,
    examples: Examples,
}

/// Predicts some examples after others, and writes each when those before it are written.
fn write_all<W: Write>(
    input: &Input,
    at_once: usize,
    predict: impl Fn(Range<usize>) -> Result<Vec<Vec<f64>>>,
    mut out: Output<W>,
) -> Result<()> {
    let total = input.names.len();
    // In a terminal that gets the predictions, these are the progress.
    let bar = if io::stdout().is_terminal() {
        ProgressBar::hidden()
    } else {
        progress::bar(total as u64)
    };
    let pulse = Pulse::new();
    if has_seen_enough(out.head())? {
        return Ok(());
    }
    for start in (0..total).step_by(at_once) {
        let places = start..total.min(start + at_once);
        let predictions = predict(places.clone())?;
        if has_seen_enough(out.some(input, places.clone(), &predictions))? {
            break;
        }
        bar.set_position(places.end as u64);
        pulse.say(|| format!("{} of {total} predicted", places.end));
    }
    bar.finish_and_clear();
    Ok(())
}

/// Whether who reads has gone, which is no error.
fn has_seen_enough(written: io::Result<()>) -> Result<bool> {
    match written {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        Err(error) => Err(error).context("cannot write the predictions"),
    }
}

/// The texts of the input, and as tokens.
fn texts(args: &PredictArgs, model: &Model) -> Result<Input> {
    let (numbers, texts) = if args.input == Path::new("-") {
        lines(io::stdin().lock()).context("cannot read standard input")?
    } else if table::is_table(&args.input) {
        let columns = Columns {
            text: &args.text_column,
            label: None,
        };
        let rows = table::read(&args.input, columns)?;
        (None, rows.into_iter().map(|row| row.text).collect())
    } else {
        let place = || format!("cannot read {}", args.input.display());
        lines(fs::read(&args.input).with_context(place)?.as_slice()).with_context(place)?
    };
    ensure!(!texts.is_empty(), "{} holds no text", args.input.display());
    let length = match args.max_length {
        Some(length) => length,
        None => {
            trained_length(model.folder())?.unwrap_or(model.token_limits()?.1.min(USUAL_LENGTH))
        }
    };
    let tokenizer = model.tokenizer(length)?;
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    let sequences = tokenizer.encode(&borrowed)?;
    let padding = model.padding();
    let examples = if model.task() == Task::CausalLm {
        let blocks: Vec<Vec<u32>> = sequences.into_iter().map(|s| s.ids).collect();
        if let Some(short) = blocks.iter().position(|b| b.len() < 2) {
            bail!("text {} has no two tokens: `{}`", short + 1, texts[short]);
        }
        Examples::Blocks(Blocks { blocks, padding })
    } else {
        Examples::Texts(Texts {
            labels: vec![0; sequences.len()],
            sequences,
            padding,
        })
    };
    Ok(Input {
        names: texts,
        lines: numbers,
        examples,
    })
}

/// Lines that are not empty, with their numbers: what is left out would otherwise set input and output apart.
fn lines(reader: impl BufRead) -> io::Result<(Option<Vec<usize>>, Vec<String>)> {
    let (mut numbers, mut texts) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(reader.lines()) {
        let line = line?;
        if !line.trim().is_empty() {
            numbers.push(number);
            texts.push(line);
        }
    }
    Ok((Some(numbers), texts))
}

/// What texts were cut to in training, if the folder says it.
fn trained_length(folder: &Path) -> Result<Option<usize>> {
    let path = folder.join(SPEC);
    if !path.is_file() {
        return Ok(None);
    }
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let spec = FineTune::from_toml(&text, &path.display().to_string())?;
    Ok(Some(spec.data.max_length))
}

/// The image files of the input, and their pixels.
fn images(args: &PredictArgs, model: &Model) -> Result<Input> {
    let preprocessing = model.preprocessing()?;
    let (names, pixels) = files::unlabelled(&args.input, &args.image_column, |picture| {
        Ok(preprocessing.pixels(&picture))
    })?;
    let labels = vec![0; names.len()];
    let images = data::Images::new(pixels, labels, preprocessing)?;
    Ok(Input {
        names,
        lines: None,
        examples: Examples::Images(images),
    })
}

/// The probability of each class, for the examples at these places.
fn probabilities(
    network: &Built,
    examples: &Examples,
    range: Range<usize>,
    size: usize,
    (device, dtype): (&Device, DType),
) -> Result<Vec<Vec<f64>>> {
    let lengths = &examples.lengths()[range.clone()];
    let mut all = vec![Vec::new(); range.len()];
    for places in batches::in_order(lengths, size) {
        let there: Vec<usize> = places.iter().map(|place| range.start + place).collect();
        let batch = examples.batch(&there, device)?.in_dtype(dtype)?;
        let logits = objective::logits(network, &batch.input, Mode::eval())?.detach();
        // Not every device knows f64.
        let shares = softmax(&logits, D::Minus1)?.to_device(&Device::Cpu)?;
        let rows: Vec<Vec<f64>> = shares.to_dtype(DType::F64)?.to_vec2()?;
        for (place, row) in places.into_iter().zip(rows) {
            all[place] = row;
        }
    }
    Ok(all)
}

/// The mean loss of a token of every text at these places.
fn losses(
    network: &Built,
    examples: &Examples,
    range: Range<usize>,
    (device, dtype): (&Device, DType),
) -> Result<Vec<Vec<f64>>> {
    let loss = |place: usize| {
        let batch = examples.batch(&[place], device)?.in_dtype(dtype)?;
        let loss = objective::loss(network, &batch, Mode::eval())?;
        Ok(vec![scalar(&loss)?])
    };
    range.map(loss).collect()
}

/// Writes predictions in one of the forms.
struct Output<W: Write> {
    format: Format,
    /// What an example is called.
    subject: &'static str,
    /// Classes; empty for language models.
    classes: Vec<String>,
    /// Whether examples have lines.
    numbered: bool,
    out: BufWriter<W>,
}

impl<W: Write> Output<W> {
    fn new(format: Format, model: &Model, numbered: bool, out: W) -> Self {
        Self {
            format,
            subject: match model.task() {
                Task::ImageClassification => "image",
                _ => "text",
            },
            classes: match model.task() {
                Task::CausalLm => Vec::new(),
                _ => model.labels().to_vec(),
            },
            numbered,
            out: BufWriter::new(out),
        }
    }

    /// What stands above all predictions.
    fn head(&mut self) -> io::Result<()> {
        if self.format != Format::Csv {
            return Ok(());
        }
        let mut head = vec![self.subject.to_owned()];
        if self.classes.is_empty() {
            head.extend(["loss", "perplexity"].map(str::to_owned));
        } else {
            head.push("label".into());
            head.extend(self.classes.iter().cloned());
        }
        // Last, so that it moves no other column.
        head.extend(self.numbered.then(|| "line".to_owned()));
        self.row(&head)
    }

    /// The predictions for these places of the input.
    fn some(&mut self, input: &Input, places: Range<usize>, all: &[Vec<f64>]) -> io::Result<()> {
        for (place, numbers) in places.zip(all) {
            let line = input.lines.as_ref().map(|lines| lines[place]);
            self.one(&input.names[place], line, numbers)?;
        }
        self.out.flush()
    }

    fn one(&mut self, name: &str, line: Option<usize>, numbers: &[f64]) -> io::Result<()> {
        match self.format {
            Format::Jsonl => self.json(name, line, numbers),
            Format::Csv => self.csv(name, line, numbers),
        }
    }

    fn json(&mut self, name: &str, number: Option<usize>, numbers: &[f64]) -> io::Result<()> {
        let mut line = Map::new();
        if let Some(number) = number {
            line.insert("line".into(), number.into());
        }
        line.insert(self.subject.into(), name.into());
        if let Some((label, probability)) = self.likeliest(numbers) {
            let pairs = self
                .classes
                .iter()
                .cloned()
                .zip(numbers.iter().map(|&p| json!(p)));
            line.insert("label".into(), label.into());
            line.insert("probability".into(), json!(probability));
            line.insert("probabilities".into(), Value::Object(pairs.collect()));
        } else {
            line.insert("loss".into(), json!(numbers[0]));
            line.insert("perplexity".into(), json!(numbers[0].exp()));
        }
        writeln!(self.out, "{}", Value::Object(line))
    }

    fn csv(&mut self, name: &str, line: Option<usize>, numbers: &[f64]) -> io::Result<()> {
        let mut cells = vec![name.to_owned()];
        match self.likeliest(numbers) {
            Some((label, _)) => {
                cells.push(label.to_owned());
                cells.extend(numbers.iter().map(f64::to_string));
            }
            None => cells.extend([numbers[0], numbers[0].exp()].map(|x| x.to_string())),
        }
        cells.extend(line.map(|line| line.to_string()));
        self.row(&cells)
    }

    fn row(&mut self, cells: &[String]) -> io::Result<()> {
        let mut writer = csv::Writer::from_writer(&mut self.out);
        writer.write_record(cells).map_err(io::Error::from)?;
        writer.flush()
    }

    /// The class of the greatest probability, if there are classes.
    fn likeliest(&self, numbers: &[f64]) -> Option<(&str, f64)> {
        let pairs = self.classes.iter().zip(numbers.iter().copied());
        let greatest = pairs.max_by(|(_, a), (_, b)| a.total_cmp(b));
        greatest.map(|(name, p)| (name.as_str(), p))
    }
}
