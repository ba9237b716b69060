//! How close numbers in single precision are to those in double precision.

use std::{collections::HashMap, fs, path::Path};

use sala_core::testing::TRAJECTORY_F32;

/// Numbers by their name in a reference: a kind, and what it is of (`grad.conv1.weight`).
pub(crate) type Values = HashMap<String, Vec<f64>>;

/// Checks that each kind of numbers is, as a whole, as close to the exact ones as single precision promises,
/// or, where rounding is magnified, not much farther than what PyTorch computes in f32. `pytorchs` is the
/// file that says how far that is.
#[track_caller]
pub(crate) fn check(name: &str, got: &Values, exact: &Values, pytorchs: &Path) {
    let text = fs::read_to_string(pytorchs).unwrap();
    let pytorchs: serde_json::Value = serde_json::from_str(&text).unwrap();
    let kinds = pytorchs[name].as_object().unwrap();
    let kind = |key: &str| {
        let whole = kinds.contains_key(key);
        let part = key.split('.').next().unwrap();
        if whole {
            key.to_owned()
        } else {
            part.to_owned()
        }
    };
    let (mut off, mut length) = (HashMap::new(), HashMap::new());
    for (key, got) in got {
        for (got, exact) in got.iter().zip(&exact[key]) {
            *off.entry(kind(key)).or_insert(0.0) += (got - exact).powi(2);
            *length.entry(kind(key)).or_insert(0.0) += exact.powi(2);
        }
    }
    assert_eq!(off.len(), kinds.len());
    for (kind, pytorchs) in kinds {
        let distance = f64::sqrt(off[kind] / length[kind]);
        let allowed = f64::max(TRAJECTORY_F32.rtol, 3.0 * pytorchs.as_f64().unwrap());
        assert!(
            distance <= allowed,
            "{name}: {kind} is off by {distance:e}, {allowed:e} allowed"
        );
    }
}
