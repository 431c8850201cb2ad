"""A trained model behind HTTP: OpenAI's API and a page to chat on. Only one_by_one.py knows JAX."""
