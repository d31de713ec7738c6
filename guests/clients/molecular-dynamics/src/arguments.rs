//! What the user says.

use std::str::FromStr;

/// The options of a simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Arguments {
    /// The name of the model.
    pub model: String,
    /// How many steps.
    pub steps: u32,
    /// In femtoseconds.
    pub time_step: f64,
    /// Of the first velocities, in kelvin.
    pub temperature: f64,
    /// How many molecules; more than one are in a periodic box.
    pub molecules: u32,
    /// Steps from one line to the next; with 0 only the last line is printed.
    pub every: u32,
}

impl Default for Arguments {
    fn default() -> Self {
        let model = "ethanol".to_owned();
        Self { model, steps: 200, time_step: 0.25, temperature: 300.0, molecules: 1, every: 20 }
    }
}

impl Arguments {
    /// Reads the words after the program's name.
    ///
    /// # Errors
    /// A sentence about the first word that makes no sense.
    pub fn read(words: &[String]) -> Result<Self, String> {
        let mut arguments = Self::default();
        for pair in words.chunks(2) {
            let (option, value) = match pair {
                [option, value] => (option.as_str(), value.as_str()),
                _ => return Err(format!("`{}` has no value", pair[0])),
            };
            match option {
                "--model" => value.clone_into(&mut arguments.model),
                "--steps" => arguments.steps = number(option, value)?,
                "--time-step" => arguments.time_step = number(option, value)?,
                "--temperature" => arguments.temperature = number(option, value)?,
                "--molecules" => arguments.molecules = number(option, value)?,
                "--every" => arguments.every = number(option, value)?,
                _ => {
                    return Err(format!(
                        "there is no option `{option}`: there are --model, --steps, --time-step, --temperature, --molecules and --every"
                    ));
                }
            }
        }
        let positive = |number: f64| number > 0.0 && number.is_finite();
        if !positive(arguments.time_step) || !positive(arguments.temperature) || arguments.molecules == 0 {
            return Err("a time step, a temperature and a number of molecules are more than 0".to_owned());
        }
        Ok(arguments)
    }
}

fn number<T: FromStr>(option: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("`{option}` is `{value}`, expected a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_options_with_values() {
        let read = |text: &str| Arguments::read(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(read(""), Ok(Arguments::default()));
        let expected = Arguments { steps: 5, time_step: 0.5, model: "a".to_owned(), ..Arguments::default() };
        assert_eq!(read("--steps 5 --time-step 0.5 --model a"), Ok(expected));
        for (text, part) in [
            ("--steps", "has no value"),
            ("--steps many", "expected a number"),
            ("--step 1", "no option `--step`"),
            ("--time-step -1", "more than 0"),
            ("--temperature NaN", "more than 0"),
        ] {
            assert!(read(text).is_err_and(|message| message.contains(part)), "{text}");
        }
    }
}
