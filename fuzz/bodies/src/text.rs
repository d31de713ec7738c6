//! What every message owes whoever reads it in a terminal.

/// The longest message, in characters. A sentence that names shapes or keys is far shorter; one that repeats its input is not.
const LONGEST_MESSAGE: usize = 10_000;

/// A message has something to say, steers no terminal, and is not as long as what it is about.
pub fn check_message(message: &str) {
    assert!(!message.trim().is_empty(), "an error says nothing");
    let length = message.chars().count();
    assert!(
        length <= LONGEST_MESSAGE,
        "a message has {length} characters: {}...",
        message.chars().take(200).collect::<String>()
    );
    let wrong = message.chars().find(|&character| character.is_control() && !['\n', '\t'].contains(&character));
    assert!(wrong.is_none(), "a message has a control character: {message:?}");
}
