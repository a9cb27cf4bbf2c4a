"""`hrpo eval`: several models on several tasks, asked the same problems, compared, and resumed where it stopped."""
