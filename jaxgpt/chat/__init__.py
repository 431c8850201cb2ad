"""On top of a trained model: evaluations, and what a chat model does between its tokens.

__main__.py      (command) the chat in a terminal: terminal.py reads lines, talk.py answers them
dialogue.py      what was said, the prompt of the next turn, files; answer_text.py shows an answer
tools.py         the tool that reads a row of a chat model, and answers
rollouts.py      a model's own answers to questions, and whether they are right
advantages.py    from the rewards of answers to what each token weighs
policy.py        the reader of batches that a run of RL has
core_tasks.py    CORE: its 22 tasks, baselines, orders
core_prompts.py  the prompts of an item, and which of their tokens are scored
core.py          runs CORE's tasks, draws the table
finished_tasks.py keeps what is finished of an evaluation
categorical.py   questions that are answered by a letter
generated.py     questions that a model answers in its own words
in_training.py   the tasks at each evaluation of a run
task_run.py      runs tasks of either kind
chat_core.py     one number for the tasks of a chat model
hellaswag.py     HellaSwag as modded-nanogpt runs it
span.py          tokens of a row whose probability is asked for; span_scores.py computes them in batches
lm_eval_model.py a model for EleutherAI's lm-evaluation-harness
"""
