//! Data sets that are recognised by what they hold.

/// Names of the classes of Fashion-MNIST, by label.
const FASHION: &[&str] = &[
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// Names of the classes of CIFAR-10, by label.
const CIFAR_10: &[&str] = &[
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

/// A part of a data set.
#[derive(Debug)]
pub(super) struct Known {
    /// Of all pixels and labels, as [`Split::fingerprint`](super::Split::fingerprint) takes it.
    fingerprint: &'static str,
    pub(super) title: &'static str,
    /// Names of its classes, by label.
    pub(super) classes: &'static [&'static str],
}

const KNOWN: [Known; 5] = [
    Known {
        fingerprint: "3e4733ae8450a2837c1f62ea9946542fde2197204feb158e5b790257ac34143a",
        title: "Fashion-MNIST, first 500 training images of each class",
        classes: FASHION,
    },
    Known {
        fingerprint: "16d82e2b505296aa2b78bd5ea0992634f30419a4c97def7c907d154a35ac6157",
        title: "Fashion-MNIST, training set",
        classes: FASHION,
    },
    Known {
        fingerprint: "9f1ec356a747bfe4ebab3cfb722d3694c9ca737e2570f6f90cf31d7b6fd689d4",
        title: "Fashion-MNIST, test set",
        classes: FASHION,
    },
    Known {
        fingerprint: "1e91790dbaf241617ca1f29a9aba08eb9a62df84cc90676b47edd05ad2ab3c94",
        title: "CIFAR-10, training set",
        classes: CIFAR_10,
    },
    Known {
        fingerprint: "9a4c74f5c8b6f2c4e13d3a1dfb43a5a8cda8a9da515e99fd620d2013a1a6287a",
        title: "CIFAR-10, test set",
        classes: CIFAR_10,
    },
];

/// The part with this fingerprint, if it is one of those.
pub(super) fn known(fingerprint: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.fingerprint == fingerprint)
}
