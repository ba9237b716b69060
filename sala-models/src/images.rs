//! Batches of images that are put together on a graphics card.
//!
//! Images that the processor augments travel to the card value by value, for every batch. An [`ImageSet`] keeps them there,
//! as bytes, and makes a batch from a few numbers for each image, a [`View`], and for the batch, a [`Mixture`], in one
//! launch:
//!
//! ```text
//! v[i, c, y, x] = 0 in a rectangle of clearedᵢ, else table_c[ image[numberᵢ, c, rowsᵢ(y), columnsᵢ(x)] ]
//!
//! None     b = v
//! Blend    bᵢ = λ vᵢ + (1 − λ) v_π(i)
//! Paste    bᵢ = v_π(i) in the rectangle, vᵢ elsewhere
//! ```
//!
//! Padded crops and flips choose rows and columns, cutout and random erasing clear rectangles, mixup blends, `CutMix`
//! pastes. What they draw stays with the caller, so a batch can have the bits that the same draws yield
//! on the processor: each product and sum of a blend is rounded once, as there.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use crate::{
    Error,
    kernels::card::{self, Call, Card},
};

const OP: &str = "ImageSet";

/// Stands for a row or column that shows nothing.
const NOTHING: u32 = u32::MAX;

/// Rows and columns of a part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rectangle {
    /// Rows, counted from the top.
    pub rows: Range<usize>,
    /// Columns, counted from the left.
    pub columns: Range<usize>,
}

/// How one image of a set is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its number in the set.
    pub number: usize,
    /// For each row of the result the image's row that it shows, or nothing for black.
    pub rows: Vec<Option<usize>>,
    /// The same for columns.
    pub columns: Vec<Option<usize>>,
    /// Parts of the result that become 0.
    pub cleared: Vec<Rectangle>,
}

impl View {
    /// All of an image of this height and width, as it is.
    pub fn whole(number: usize, height: usize, width: usize) -> Self {
        Self {
            number,
            rows: (0..height).map(Some).collect(),
            columns: (0..width).map(Some).collect(),
            cleared: vec![],
        }
    }
}

/// What becomes of the views of a batch. `order` has the number in the batch of each one's partner, π.
#[derive(Debug, Clone, PartialEq)]
pub enum Mixture {
    /// They stay as they are.
    None,
    /// Each is blended with its partner.
    Blend {
        /// The partners.
        order: Vec<usize>,
        /// λ, the view's own share, in `[0, 1]`.
        share: f64,
    },
    /// A part of each is that of its partner.
    Paste {
        /// The partners.
        order: Vec<usize>,
        /// The part.
        rectangle: Rectangle,
    },
}

/// Images of one shape in the memory of a graphics card.
#[derive(Clone)]
pub struct ImageSet {
    card: Card,
    /// `(N, C, H, W)`, u8.
    images: Tensor,
    /// `(C, 256)`, f32.
    tables: Tensor,
    shape: [usize; 3],
}

impl std::fmt::Debug for ImageSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let images = self.images.dims();
        let mut shown = f.debug_struct("ImageSet");
        shown.field("images", &images).finish_non_exhaustive()
    }
}

impl ImageSet {
    /// Uploads images of `shape` `[C, H, W]`, one after the other in `pixels`. `tables` has the value of each byte, for each
    /// channel. Nothing for a device on which batches cannot be made so: all but NVIDIA's cards.
    ///
    /// # Errors
    /// When there are no pixels, they are no whole number of images, or there is not a table for each channel; those of
    /// the device.
    ///
    /// ```
    /// use candle_core::Device;
    /// use sala_models::images::ImageSet;
    ///
    /// let pixels = vec![0; 2 * 3 * 8 * 8];
    /// let set = ImageSet::new(pixels, [3, 8, 8], &[[0.5; 256]; 3], &Device::Cpu)?;
    /// assert!(set.is_none());
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn new(
        pixels: Vec<u8>,
        shape: [usize; 3],
        tables: &[[f32; 256]],
        device: &Device,
    ) -> Result<Option<Self>> {
        let [channels, height, width] = shape;
        let size = channels * height * width;
        if pixels.is_empty() || size == 0 || !pixels.len().is_multiple_of(size) {
            let wanted = format!("images of {channels}×{height}×{width}");
            return refuse("pixels", wanted, format!("{} pixels", pixels.len()));
        }
        if tables.len() != channels {
            let wanted = format!("one for each of {channels} channels");
            return refuse("tables", wanted, tables.len());
        }
        let Some(card) = card::on(device)? else {
            return Ok(None);
        };
        let count = pixels.len() / size;
        let images = Tensor::from_vec(pixels, (count, channels, height, width), device)?;
        let tables = Tensor::from_vec(tables.concat(), (channels, 256), device)?;
        Ok(Some(Self {
            card,
            images,
            tables,
            shape,
        }))
    }

    /// Whether batches can be made on a device.
    ///
    /// # Errors
    /// When `SALA_KERNELS` has an unknown value.
    ///
    /// ```
    /// use candle_core::Device;
    /// use sala_models::images::ImageSet;
    ///
    /// assert!(!ImageSet::fits(&Device::Cpu)?);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn fits(device: &Device) -> Result<bool> {
        card::serves(device)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.images.dims().first().copied().unwrap_or(0)
    }

    /// Whether there are none; there always are some.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A batch `(B, C, H, W)` of f32, B the number of views.
    ///
    /// # Errors
    /// When there are no views, one shows what the set or its image does not have, or the mixture does not fit the
    /// batch; those of the device.
    pub fn batch(&self, views: &[View], mixture: &Mixture) -> Result<Tensor> {
        let [channels, height, width] = self.shape;
        let cleared = views.iter().map(|view| view.cleared.len()).max();
        let Some(cleared) = cleared else {
            return refuse("views", "at least one", 0);
        };
        let words = 2 + height + width + 4 * cleared;
        let mut plan = Vec::with_capacity(views.len() * words);
        for (view, partner) in views.iter().zip(partners(views.len(), mixture)?) {
            self.describe(view, partner, &mut plan)?;
            // The others are rectangles without a row.
            plan.resize(plan.len().next_multiple_of(words), 0);
        }
        let plan = Tensor::from_vec(plan, (views.len(), words), self.images.device())?;
        let (kind, factors, part) = self.mixing(mixture)?;
        let batch = self
            .card
            .empty((views.len(), channels, height, width), DType::F32)?;
        let count = batch.elem_count();
        if u32::try_from(count).is_err() {
            return refuse("views", "a batch of less than 2³² values", count);
        }
        let mut numbers = vec![count, channels, height, width, words, cleared, kind];
        numbers.extend([part.rows.start, part.rows.end]);
        numbers.extend([part.columns.start, part.columns.end]);
        self.card.launch(Call {
            kernel: "image_batch",
            dtype: DType::F32,
            blocks: count.div_ceil(card::CHUNK),
            tensors: &[
                Some(&self.images),
                Some(&self.tables),
                Some(&plan),
                Some(&batch),
            ],
            numbers: &numbers,
            factors: &factors,
        })?;
        Ok(batch)
    }

    /// The number by which the kernel knows the kind of a mixture, the shares of a blend, and the part that is pasted.
    fn mixing(&self, mixture: &Mixture) -> Result<(usize, [f64; 2], Rectangle)> {
        let nothing = Rectangle {
            rows: 0..0,
            columns: 0..0,
        };
        Ok(match mixture {
            Mixture::None => (0, [1.0, 0.0], nothing),
            Mixture::Blend { share, .. } if (0.0..=1.0).contains(share) => {
                (1, [*share, 1.0 - share], nothing)
            }
            Mixture::Blend { share, .. } => {
                return refuse("mixture.share", "in [0, 1]", share);
            }
            Mixture::Paste { rectangle, .. } => {
                self.check(rectangle, "mixture.rectangle")?;
                (2, [1.0, 0.0], rectangle.clone())
            }
        })
    }

    /// Appends what the kernel is told of a view.
    fn describe(&self, view: &View, partner: usize, plan: &mut Vec<u32>) -> Result<()> {
        let [_, height, width] = self.shape;
        if view.number >= self.len() {
            let wanted = format!("below the number of images, {}", self.len());
            return refuse("view.number", wanted, view.number);
        }
        plan.extend([word(view.number)?, word(partner)?]);
        let sides = [
            ("view.rows", &view.rows, height),
            ("view.columns", &view.columns, width),
        ];
        for (name, places, size) in sides {
            if places.len() != size || places.iter().flatten().any(|&place| place >= size) {
                let wanted = format!("{size} places below {size}");
                return refuse(name, wanted, format!("{places:?}"));
            }
            for place in places {
                plan.push(place.map_or(Ok(NOTHING), word)?);
            }
        }
        for part in &view.cleared {
            self.check(part, "view.cleared")?;
            let Rectangle { rows, columns } = part;
            for place in [rows.start, rows.end, columns.start, columns.end] {
                plan.push(word(place)?);
            }
        }
        Ok(())
    }

    /// Whether a rectangle lies within the images.
    fn check(&self, part: &Rectangle, argument: &'static str) -> Result<()> {
        let [_, height, width] = self.shape;
        if part.rows.end > height || part.columns.end > width {
            let wanted = format!("within {height}×{width}");
            return refuse(argument, wanted, format!("{part:?}"));
        }
        Ok(())
    }
}

/// The number of each view's partner in a batch of `count`.
fn partners(count: usize, mixture: &Mixture) -> Result<Vec<usize>> {
    let order = match mixture {
        Mixture::None => return Ok((0..count).collect()),
        Mixture::Blend { order, .. } | Mixture::Paste { order, .. } => order,
    };
    if order.len() != count || order.iter().any(|&partner| partner >= count) {
        let wanted = format!("{count} numbers below {count}");
        return refuse("mixture.order", wanted, format!("{order:?}"));
    }
    Ok(order.clone())
}

fn word(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(candle_core::Error::wrap)
}

fn refuse<T>(argument: &'static str, wanted: impl Into<String>, got: impl ToString) -> Result<T> {
    let (wanted, got) = (wanted.into(), got.to_string());
    Err(Error::Argument {
        op: OP,
        argument,
        wanted,
        got,
    }
    .into())
}
