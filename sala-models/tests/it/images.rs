//! Batches put together by the kernel for graphics cards, against loops that say what they are.

#![expect(
    clippy::cast_possible_truncation,
    reason = "shares and values are rounded to f32, as the kernel does"
)]

use candle_core::Device;
use sala_models::{
    Rng,
    images::{ImageSet, Mixture, Rectangle, View},
    kernels::{Choice, with_choice},
};

const SHAPE: [usize; 3] = [2, 5, 7];
const COUNT: usize = 4;
const SIZE: usize = 70;

fn pixels() -> Vec<u8> {
    let value = |i: usize| u8::try_from(i * 41 % 256).unwrap();
    (0..COUNT * SIZE).map(value).collect()
}

/// Values that have no simple relation to their bytes.
fn tables() -> Vec<[f32; 256]> {
    let stream = Rng::new(3).stream("tables");
    let table = |c: u64| {
        let value = |i: usize| stream.at(c).uniform(i as u64) as f32 - 0.5;
        std::array::from_fn(value)
    };
    vec![table(0), table(1)]
}

fn set() -> Option<ImageSet> {
    let set = || ImageSet::new(pixels(), SHAPE, &tables(), &Device::Cpu);
    with_choice(Choice::Emulated, set).unwrap()
}

fn rectangle(rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) -> Rectangle {
    Rectangle { rows, columns }
}

/// A view with black rows, mirrored columns and, of some, cleared parts.
fn view(i: usize) -> View {
    let row = |y: usize| (y + i).checked_sub(2).filter(|&y| y < 5);
    let column = |x: usize| Some(if i.is_multiple_of(2) { 6 - x } else { x }).filter(|&x| x != i);
    let cleared = [rectangle(1..3, 2..4), rectangle(4..5, 0..7)];
    View {
        number: (i * 3 + 1) % COUNT,
        rows: (0..5).map(row).collect(),
        columns: (0..7).map(column).collect(),
        cleared: cleared[..i % 3].to_vec(),
    }
}

/// What a view shows at channel, row and column.
fn seen(view: &View, [c, y, x]: [usize; 3]) -> f32 {
    let hidden = |part: &Rectangle| part.rows.contains(&y) && part.columns.contains(&x);
    if view.cleared.iter().any(hidden) {
        return 0.0;
    }
    let pixel = match (view.rows[y], view.columns[x]) {
        (Some(row), Some(column)) => pixels()[view.number * SIZE + (c * 5 + row) * 7 + column],
        _ => 0,
    };
    tables()[c][usize::from(pixel)]
}

fn wanted(views: &[View], mix: impl Fn(usize, [usize; 3]) -> f32) -> Vec<f32> {
    let place = |i: usize| [i / 35 % 2, i / 7 % 5, i % 7];
    let all = 0..views.len() * SIZE;
    all.map(|i| mix(i / SIZE, place(i))).collect()
}

fn made(set: &ImageSet, views: &[View], mixture: &Mixture) -> Vec<f32> {
    let batch = set.batch(views, mixture).unwrap();
    assert_eq!(batch.dims(), [views.len(), 2, 5, 7]);
    batch.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn views_mixed_views_and_pasted_ones_have_the_bits_of_plain_loops() {
    // Nothing without a C++ compiler.
    let Some(set) = set() else { return };
    let views: Vec<View> = (0..7).map(view).collect();
    let see = |i: usize, at| seen(&views[i], at);
    assert_eq!(made(&set, &views, &Mixture::None), wanted(&views, see));

    let order = vec![3, 0, 2, 6, 5, 4, 1];
    let share = 0.3;
    let blend = Mixture::Blend {
        order: order.clone(),
        share,
    };
    let blended = wanted(&views, |i, at| {
        share as f32 * see(i, at) + (1.0 - share) as f32 * see(order[i], at)
    });
    assert_eq!(made(&set, &views, &blend), blended);

    let part = rectangle(1..4, 3..7);
    let pasted = wanted(&views, |i, [c, y, x]| {
        let inside = part.rows.contains(&y) && part.columns.contains(&x);
        see(if inside { order[i] } else { i }, [c, y, x])
    });
    let paste = Mixture::Paste {
        order,
        rectangle: part,
    };
    assert_eq!(made(&set, &views, &paste), pasted);
}

/// More elements than a block takes.
#[test]
fn large_batches_take_many_blocks() {
    let Some(set) = set() else { return };
    let views: Vec<View> = (0..200).map(view).collect();
    let all = wanted(&views, |i, at| seen(&views[i], at));
    assert_eq!(made(&set, &views, &Mixture::None), all);
}

#[test]
fn what_is_not_there_is_refused_with_its_name() {
    let Some(set) = set() else { return };
    let message = |views: &[View], mixture: &Mixture| {
        let result = set.batch(views, mixture);
        result.unwrap_err().to_string()
    };
    let views = [view(0), view(1)];
    assert!(message(&[], &Mixture::None).contains("views"));
    let change = |f: &dyn Fn(&mut View)| {
        let mut view = view(0);
        f(&mut view);
        message(&[view], &Mixture::None)
    };
    assert!(change(&|v| v.number = COUNT).contains("below the number of images, 4, got 4"));
    assert!(change(&|v| v.rows[2] = Some(5)).contains("view.rows"));
    assert!(change(&|v| v.columns.truncate(6)).contains("view.columns"));
    assert!(change(&|v| v.cleared = vec![rectangle(0..6, 0..1)]).contains("view.cleared"));
    let blend = |order: &[usize], share| Mixture::Blend {
        order: order.to_vec(),
        share,
    };
    assert!(message(&views, &blend(&[0], 0.5)).contains("mixture.order"));
    assert!(message(&views, &blend(&[0, 2], 0.5)).contains("mixture.order"));
    assert!(message(&views, &blend(&[1, 0], 1.5)).contains("mixture.share"));
    let paste = Mixture::Paste {
        order: vec![1, 0],
        rectangle: rectangle(0..1, 0..8),
    };
    assert!(message(&views, &paste).contains("mixture.rectangle"));
}

#[test]
fn pixels_and_tables_have_to_fit_the_shape() {
    let new = |pixels: usize, tables: usize| {
        let tables = vec![[0.0; 256]; tables];
        ImageSet::new(vec![0; pixels], SHAPE, &tables, &Device::Cpu).map(|_| ())
    };
    new(SIZE, 2).unwrap();
    assert!(new(0, 2).is_err() && new(SIZE + 1, 2).is_err());
    assert!(new(SIZE, 1).unwrap_err().to_string().contains("tables"));
}
