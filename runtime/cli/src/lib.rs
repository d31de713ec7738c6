//! The kilnbox program: trains, evaluates and exports models of atoms.
//!
//! `main` parses the command line and calls one of [`commands`]. A command reads what the user wrote ([`options`], [`yaml`]), finds the
//! architecture ([`architectures`], [`registries`]) and its hypers ([`hypers`]), reads the data ([`convert`], [`split`]), and runs the architecture in a session
//! of `kilnbox-host`. What it leaves behind is the business of [`run_folder`] and [`log`]; errors become sentences in [`errors`].
//! Whose files may run at all is asked of [`trust`].

pub mod architectures;
pub mod commands;
pub mod convert;
pub mod errors;
pub mod evaluation;
pub mod hypers;
pub mod log;
pub mod options;
pub mod registries;
pub mod run_folder;
pub mod sandbox;
pub mod split;
pub mod trust;
pub mod yaml;
