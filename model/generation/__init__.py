"""From prompts to tokens: settings, the model over a batch, sampling and the searches."""
