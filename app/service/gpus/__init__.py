"""The GPUs of a host: which device a worker gets, the readings exported, and the cards that are not used."""
