"""What a chat model is taught and asked: rows of data sets as conversations, and the rules that judge an answer.

    task.py             a view of rows, mixtures, sequences
    multiple_choice.py  letters: MMLU and ARC (mmlu.py, arc.py)
    gsm8k.py            a number after ####
    humaneval.py        a program, run in a sandbox (sandbox.py)
    spelling.py         made from a list of words
    sums.py             sums of two numbers, for models trained on a CPU
    python_talk.py      questions about Python's library, and who answers
    smoltalk.py, own.py conversations as they are
    mixtures.py         what the stages of nanochat train on
    hub_files.py        data sets of the Hugging Face hub, or local copies
    calculator.py       arithmetic that a model asks for

A conversation is a mapping: {"messages": [{"role", "content"}, ...]}, and what the task adds (letters, subject,
entry_point, test). Nothing here imports a framework.
"""
