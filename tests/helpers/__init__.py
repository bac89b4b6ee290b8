"""What several test modules share: tiny models and tokenizers, servers, browsers and processes, all real."""
