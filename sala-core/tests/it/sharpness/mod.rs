//! Measurements of sharpness against Hessians that are known, and what they leave behind.

mod curvature;
mod exact;
mod networks;
mod problems;
mod pyhessian;
mod restores;
mod rises;
mod slices;
