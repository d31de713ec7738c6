//! Targets: what is read, under which name, and what it means.

use super::dataset::{SystemsOptions, read_path, read_reader};
use crate::errors::{CliError, nearest};
use crate::yaml::{Field, Section, Value};
use serde_json::{Map, Value as Json, json};
use std::path::PathBuf;

/// The largest number of properties of a target; densities of states have thousands.
const MAX_SUBTARGETS: u64 = 1_000_000;
/// The highest rank of a Cartesian target; the contract's tensors have no more axes to hold it.
const MAX_RANK: u64 = 6;
/// The highest angular momentum of a spherical target.
const MAX_LAMBDA: u64 = 32;

/// The names that metatomic gives to quantities. Anything else is the user's own and starts with `mtt::`.
const STANDARD_NAMES: [&str; 15] = [
    "energy",
    "energy_ensemble",
    "energy_uncertainty",
    "non_conservative_force",
    "non_conservative_stress",
    "position",
    "momentum",
    "velocity",
    "heat_flux",
    "feature",
    "mass",
    "charge",
    "dipole",
    "spin_multiplicity",
    "charges",
];

/// Plural names that metatrain has given up, with the names that replace them.
const RENAMED: [(&str, &str); 6] = [
    ("non_conservative_forces", "non_conservative_force"),
    ("positions", "position"),
    ("momenta", "momentum"),
    ("velocities", "velocity"),
    ("features", "feature"),
    ("masses", "mass"),
];

/// One target, or one piece of extra data.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetOptions {
    /// The name in the model: a standard one, a variant such as `energy/pbe`, or one that starts with `mtt::`.
    pub name: String,
    /// What kind of quantity it is; only `energy` has a meaning. Empty when it is none.
    pub quantity: String,
    /// The file; the systems' file by default.
    pub read_from: PathBuf,
    /// The reader; none goes by the file's suffix.
    pub reader: Option<String>,
    /// The field in the file; the target's name by default.
    pub key: String,
    /// The unit; empty when the user names none.
    pub unit: String,
    /// What one value belongs to.
    pub sample_kind: SampleKind,
    /// How the target behaves under rotations.
    pub target_type: TargetType,
    /// The number of properties of each value.
    pub num_subtargets: u64,
    /// What the target is, in the user's words.
    pub description: String,
    /// Forces, the negative derivative with respect to positions; none when switched off.
    pub forces: Option<GradientOptions>,
    /// The stress, the derivative with respect to strain over the volume; none when switched off.
    pub stress: Option<GradientOptions>,
    /// The virial, the negative derivative with respect to strain; none when switched off.
    pub virial: Option<GradientOptions>,
}

/// A derivative of an energy that comes with it.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientOptions {
    /// The file; the target's by default.
    pub read_from: PathBuf,
    /// The reader; none goes by the file's suffix.
    pub reader: Option<String>,
    /// The field in the file: `forces`, `stress` or `virial` by default.
    pub key: String,
    /// Whether the user asked for it. Forces and stress of an energy are also read when nobody asked, and then it is
    /// no error when the file has none.
    pub required: bool,
}

/// What one value of a target belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    /// A whole structure.
    System,
    /// One atom.
    Atom,
    /// A pair of atoms.
    AtomPair,
}

impl SampleKind {
    /// The word in the options.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Atom => "atom",
            Self::AtomPair => "atom_pair",
        }
    }
}

/// How a target behaves under rotations.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetType {
    /// Not at all.
    Scalar,
    /// As a Cartesian tensor.
    Cartesian {
        /// The number of Cartesian axes, 1 for a vector.
        rank: u64,
    },
    /// As spherical harmonics.
    Spherical {
        /// The irreducible parts.
        irreps: Vec<SphericalIrrep>,
        /// How two parts make one value; none when there is only one factor.
        product: Option<SphericalProduct>,
    },
}

/// One irreducible part of a spherical target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SphericalIrrep {
    /// The angular momentum; the part has `2 * o3_lambda + 1` components.
    pub o3_lambda: u64,
    /// 1 for a proper tensor, -1 for a pseudotensor.
    pub o3_sigma: i8,
    /// How many such parts there are; the target's `num_subtargets` when the user does not say.
    pub num: Option<u64>,
}

/// How the factors of a spherical target are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SphericalProduct {
    /// Coupled to irreducible parts.
    Coupled,
    /// Kept apart, with two axes of components.
    Cartesian,
}

impl TargetOptions {
    /// The energy that a bare file name stands for.
    pub(super) fn default_energy(systems: &SystemsOptions) -> Self {
        let gradient = |key: &str| GradientOptions {
            read_from: systems.read_from.clone(),
            reader: systems.reader.clone(),
            key: key.to_owned(),
            required: false,
        };
        Self {
            forces: Some(gradient("forces")),
            stress: Some(gradient("stress")),
            quantity: "energy".to_owned(),
            ..Self::plain("energy", systems)
        }
    }

    /// A scalar per system without gradients, in the systems' file.
    fn plain(name: &str, systems: &SystemsOptions) -> Self {
        Self {
            name: name.to_owned(),
            quantity: String::new(),
            read_from: systems.read_from.clone(),
            reader: systems.reader.clone(),
            key: name.to_owned(),
            unit: String::new(),
            sample_kind: SampleKind::System,
            target_type: TargetType::Scalar,
            num_subtargets: 1,
            description: String::new(),
            forces: None,
            stress: None,
            virial: None,
        }
    }

    /// Whether this is an energy, the only kind of target that has gradients.
    pub fn is_energy(&self) -> bool {
        self.quantity == "energy"
    }

    pub(super) fn to_json(&self) -> Json {
        let mut target = Map::new();
        let mut insert = |key: &str, value: Json| target.insert(key.to_owned(), value);
        insert("quantity", json!(self.quantity));
        insert("read_from", json!(self.read_from.display().to_string()));
        if let Some(reader) = &self.reader {
            insert("reader", json!(reader));
        }
        insert("key", json!(self.key));
        insert("unit", json!(self.unit));
        insert("sample_kind", json!(self.sample_kind.as_str()));
        insert("type", self.target_type.to_json());
        insert("num_subtargets", json!(self.num_subtargets));
        insert("description", json!(self.description));
        for (key, gradient) in [("forces", &self.forces), ("stress", &self.stress), ("virial", &self.virial)] {
            match gradient {
                // A gradient that nobody asked for is left out, so that it stays one that may be missing.
                Some(gradient) if !gradient.required => {}
                Some(gradient) => drop(insert(key, gradient.to_json())),
                None if self.is_energy() => drop(insert(key, json!(false))),
                None => {}
            }
        }
        Json::Object(target)
    }
}

impl GradientOptions {
    fn to_json(&self) -> Json {
        let mut gradient = Map::new();
        gradient.insert("read_from".to_owned(), json!(self.read_from.display().to_string()));
        if let Some(reader) = &self.reader {
            gradient.insert("reader".to_owned(), json!(reader));
        }
        gradient.insert("key".to_owned(), json!(self.key));
        Json::Object(gradient)
    }
}

impl TargetType {
    fn to_json(&self) -> Json {
        match self {
            Self::Scalar => json!("scalar"),
            Self::Cartesian { rank } => json!({"cartesian": {"rank": rank}}),
            Self::Spherical { irreps, product } => {
                let irreps: Vec<Json> = irreps.iter().map(SphericalIrrep::to_json).collect();
                let mut spherical = Map::new();
                spherical.insert("irreps".to_owned(), json!(irreps));
                if let Some(product) = product {
                    let word = match product {
                        SphericalProduct::Coupled => "coupled",
                        SphericalProduct::Cartesian => "cartesian",
                    };
                    spherical.insert("product".to_owned(), json!(word));
                }
                json!({"spherical": spherical})
            }
        }
    }
}

impl SphericalIrrep {
    fn to_json(&self) -> Json {
        let mut irrep = Map::new();
        irrep.insert("o3_lambda".to_owned(), json!(self.o3_lambda));
        irrep.insert("o3_sigma".to_owned(), json!(self.o3_sigma));
        if let Some(num) = self.num {
            irrep.insert("num".to_owned(), json!(num));
        }
        Json::Object(irrep)
    }
}

/// Reads a section whose keys are the names of targets.
pub(super) fn read_targets(
    field: &Field<'_>,
    systems: &SystemsOptions,
    warnings: &mut Vec<String>,
) -> Result<Vec<TargetOptions>, CliError> {
    let mut targets: Vec<TargetOptions> = Vec::new();
    for (entry, target) in field.section()?.fields() {
        let name = read_name(&entry.key, &target, warnings)?;
        let own_name = |name: &str| name.strip_prefix("mtt::").unwrap_or(name).to_owned();
        if let Some(same) = targets.iter().find(|other| own_name(&other.name) == own_name(&name)) {
            return Err(target
                .error(format!("and `{}` are the same name", same.name))
                .hint("remove or rename one of them"));
        }
        targets.push(read_target(&name, &target, systems, warnings)?);
    }
    Ok(targets)
}

fn read_name(key: &str, field: &Field<'_>, warnings: &mut Vec<String>) -> Result<String, CliError> {
    let (base, variant) = key.split_once('/').map_or((key, None), |(base, variant)| (base, Some(variant)));
    if variant == Some("") || key == "mtt::" {
        return Err(field.error("is not a complete name of a target"));
    }
    if base.starts_with("mtt::") || STANDARD_NAMES.contains(&base) {
        return Ok(key.to_owned());
    }
    if let Some((old, new)) = RENAMED.iter().find(|(old, _)| *old == base) {
        warnings.push(format!("{}: `{old}` is now called `{new}`", field.node.place));
        return Ok(key.replacen(old, new, 1));
    }
    let error = field.error("is neither a standard name of a quantity nor starts with `mtt::`");
    Err(match nearest(base, STANDARD_NAMES) {
        Some(standard) => error.hint(format!("use `{standard}`, or `mtt::{key}` for a quantity of your own")),
        None => error.hint(format!("use `mtt::{key}`")),
    })
}

fn read_target(
    name: &str,
    field: &Field<'_>,
    systems: &SystemsOptions,
    warnings: &mut Vec<String>,
) -> Result<TargetOptions, CliError> {
    const KEYS: [&str; 13] = [
        "quantity",
        "read_from",
        "reader",
        "key",
        "unit",
        "sample_kind",
        "per_atom",
        "type",
        "num_subtargets",
        "description",
        "forces",
        "stress",
        "virial",
    ];
    let is_named_energy = name == "energy" || name.starts_with("energy/");
    let mut target = TargetOptions::plain(name, systems);
    if is_named_energy {
        target.quantity = "energy".to_owned();
    }
    let section = match &field.node.value {
        Value::Text(_) => {
            target.read_from = read_path(field)?;
            target.reader = None;
            None
        }
        Value::Null => None,
        _ => Some(field.section()?),
    };
    if let Some(section) = &section {
        section.allow_only(&KEYS)?;
        read_source(section, &mut target)?;
        read_meaning(section, &mut target, warnings)?;
    }
    read_gradients(section.as_ref(), &mut target)?;
    check_energy(field, &target)?;
    Ok(target)
}

/// Where the numbers are.
fn read_source(section: &Section<'_>, target: &mut TargetOptions) -> Result<(), CliError> {
    if let Some(field) = section.get("read_from") {
        target.read_from = read_path(&field)?;
        target.reader = None;
    }
    if let Some(field) = section.get("reader") {
        target.reader = Some(read_reader(&field)?);
    }
    if let Some(field) = section.get("key") {
        target.key = field.text()?;
    }
    Ok(())
}

/// What the numbers are.
fn read_meaning(section: &Section<'_>, target: &mut TargetOptions, warnings: &mut Vec<String>) -> Result<(), CliError> {
    if let Some(field) = section.get("quantity") {
        let quantity = field.text()?;
        // An energy stays one by its name, as in metatrain.
        if !quantity.is_empty() {
            target.quantity = quantity;
        }
    }
    if let Some(field) = section.get("unit") {
        target.unit = field.text()?;
    }
    if let Some(field) = section.get("description") {
        target.description = field.text()?;
    }
    target.sample_kind = read_sample_kind(section, warnings)?;
    if let Some(field) = section.get("type") {
        target.target_type = read_type(&field)?;
    }
    if let Some(field) = section.get("num_subtargets") {
        target.num_subtargets = field.integer(MAX_SUBTARGETS)?;
        if target.num_subtargets == 0 {
            return Err(field.wrong("at least 1"));
        }
    }
    check_energy_unit(section, target)
}

/// A unit that nothing could be converted to would make the model useless to every program that asks for another.
fn check_energy_unit(section: &Section<'_>, target: &TargetOptions) -> Result<(), CliError> {
    match section.get("unit") {
        Some(field)
            if target.is_energy()
                && !target.unit.is_empty()
                && kilnbox_data::units::energy_in_electronvolt(&target.unit).is_none() =>
        {
            Err(field.wrong("a unit of energy: `eV`, `meV`, `Hartree`, `Ry`, `kcal/mol`, `kJ/mol` or `J`"))
        }
        _ => Ok(()),
    }
}

fn read_sample_kind(section: &Section<'_>, warnings: &mut Vec<String>) -> Result<SampleKind, CliError> {
    let per_atom = section.get("per_atom");
    if let Some(field) = section.get("sample_kind") {
        if let Some(per_atom) = per_atom {
            return Err(per_atom
                .error("and `sample_kind` are both given")
                .hint("remove `per_atom`, the older of the two"));
        }
        return Ok(match field.one_of(&["system", "atom", "atom_pair"])?.as_str() {
            "system" => SampleKind::System,
            "atom" => SampleKind::Atom,
            _ => SampleKind::AtomPair,
        });
    }
    let Some(field) = per_atom else { return Ok(SampleKind::System) };
    warnings.push(format!("{}: `per_atom` is replaced by `sample_kind: atom`", field.node.place));
    Ok(if field.boolean()? { SampleKind::Atom } else { SampleKind::System })
}

fn read_type(field: &Field<'_>) -> Result<TargetType, CliError> {
    if let Value::Text(_) = &field.node.value {
        field.one_of(&["scalar"]).map_err(|error| error.hint("a vector is `{cartesian: {rank: 1}}`"))?;
        return Ok(TargetType::Scalar);
    }
    let section = field.section()?;
    section.allow_only(&["cartesian", "spherical"])?;
    match (section.get("cartesian"), section.get("spherical")) {
        (Some(cartesian), None) => {
            let cartesian = cartesian.section()?;
            cartesian.allow_only(&["rank"])?;
            let rank = cartesian.require("rank")?;
            match rank.integer(MAX_RANK)? {
                0 => Err(rank.wrong("at least 1")),
                rank => Ok(TargetType::Cartesian { rank }),
            }
        }
        (None, Some(spherical)) => read_spherical(&spherical),
        _ => Err(field.wrong("`scalar`, or either of `cartesian` and `spherical`")),
    }
}

fn read_spherical(field: &Field<'_>) -> Result<TargetType, CliError> {
    let section = field.section()?;
    section.allow_only(&["irreps", "product"])?;
    let irreps_field = section.require("irreps")?;
    if matches!(irreps_field.node.value, Value::Map(_)) {
        return Err(
            irreps_field.error("is given per atomic type; such targets on an atomic basis are not supported yet")
        );
    }
    let irreps = irreps_field.list()?.iter().map(read_irrep).collect::<Result<Vec<_>, _>>()?;
    if irreps.is_empty() {
        return Err(irreps_field.error("is an empty list"));
    }
    let product = match section.get("product") {
        None => None,
        Some(field) => Some(match field.one_of(&["coupled", "cartesian"])?.as_str() {
            "coupled" => SphericalProduct::Coupled,
            _ => SphericalProduct::Cartesian,
        }),
    };
    Ok(TargetType::Spherical { irreps, product })
}

fn read_irrep(field: &Field<'_>) -> Result<SphericalIrrep, CliError> {
    let section = field.section()?;
    section.allow_only(&["o3_lambda", "o3_sigma", "num"])?;
    let sigma = section.require("o3_sigma")?;
    let o3_sigma = match sigma.node.value {
        Value::Integer(1) => 1,
        Value::Integer(-1) => -1,
        _ => return Err(sigma.wrong("1 or -1")),
    };
    let num = section.get("num").map(|field| field.integer(MAX_SUBTARGETS)).transpose()?;
    Ok(SphericalIrrep { o3_lambda: section.require("o3_lambda")?.integer(MAX_LAMBDA)?, o3_sigma, num })
}

/// Reads forces, stress and virial. An energy has forces and stress unless they are switched off, or unless the virial
/// takes the place of the stress.
fn read_gradients(section: Option<&Section<'_>>, target: &mut TargetOptions) -> Result<(), CliError> {
    let read = |key: &str, by_default: bool| -> Result<Option<GradientOptions>, CliError> {
        let default = GradientOptions {
            read_from: target.read_from.clone(),
            reader: target.reader.clone(),
            key: key.to_owned(),
            required: false,
        };
        match section.and_then(|section| section.get(key)) {
            Some(field) => read_gradient(&field, GradientOptions { required: true, ..default }),
            None => Ok(by_default.then_some(default)),
        }
    };
    let is_energy = target.quantity == "energy";
    let virial = read("virial", false)?;
    let forces = read("forces", is_energy)?;
    let stress = read("stress", is_energy && virial.is_none())?;
    if let (Some(section), Some(_), Some(_)) = (section, &stress, &virial) {
        return Err(section
            .error("has both `stress` and `virial`, which are the same derivative")
            .hint("switch one of them off"));
    }
    target.forces = forces;
    target.stress = stress;
    target.virial = virial;
    Ok(())
}

fn read_gradient(field: &Field<'_>, default: GradientOptions) -> Result<Option<GradientOptions>, CliError> {
    if let Some(on) = field.as_boolean() {
        return Ok(on.then_some(default));
    }
    if let Value::Text(_) = &field.node.value {
        return Ok(Some(GradientOptions { read_from: read_path(field)?, reader: None, ..default }));
    }
    if !matches!(field.node.value, Value::Map(_)) {
        return Err(field.wrong("`true`, `false`, a file name, or a section"));
    }
    let section = field.section()?;
    section.allow_only(&["read_from", "reader", "key"])?;
    let mut gradient = default;
    if let Some(field) = section.get("read_from") {
        gradient.read_from = read_path(&field)?;
        gradient.reader = None;
    }
    if let Some(field) = section.get("reader") {
        gradient.reader = Some(read_reader(&field)?);
    }
    if let Some(field) = section.get("key") {
        gradient.key = field.text()?;
    }
    Ok(Some(gradient))
}

/// Gradients are those of an energy, and an energy is one number per system.
fn check_energy(field: &Field<'_>, target: &TargetOptions) -> Result<(), CliError> {
    let has_gradients = target.forces.is_some() || target.stress.is_some() || target.virial.is_some();
    if has_gradients && !target.is_energy() {
        return Err(field.error("has gradients, and only energies do").hint("add `quantity: energy` if it is one"));
    }
    let asked =
        [&target.forces, &target.stress, &target.virial].into_iter().flatten().any(|gradient| gradient.required);
    let is_total_energy = target.sample_kind == SampleKind::System
        && target.target_type == TargetType::Scalar
        && target.num_subtargets == 1;
    if asked && !is_total_energy {
        return Err(field.error("has gradients, so it must be one scalar per system"));
    }
    Ok(())
}
